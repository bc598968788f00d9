/*
 * simkvm: a model of KVM's side of guest_memfd, preloaded under an emulator
 *
 * What the model's source files share.  The rules it keeps are those of a
 * kernel; where one is not obvious, its place says where it comes from.
 *
 * Handlers return what the system call would: a value >= 0, or -errno.
 *
 * Locks, in the order in which they are taken: SimVm.lock, SimGmem.lock, and
 * the inner ones of files and reports, under which nothing else is taken.
 * They are those of pthreads, because ThreadSanitizer knows them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SIMKVM_H
#define SIMKVM_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <glib.h>

#include "../../accel/kvm/guest-memfd-uapi.h"

#define SIM_PAGE 4096ULL
#define SIM_PAGE_SHIFT 12

typedef struct SimVm SimVm;
typedef struct SimVcpu SimVcpu;
typedef struct SimGmem SimGmem;
typedef struct SimFile SimFile;
typedef struct SimScript SimScript;

/* --- config.c: what was asked for, in the file that SIMKVM names --- */

typedef enum SimGeneration {
    SIM_G0,             /* before Linux 6.18 */
    SIM_G1,             /* 6.18 to 7.3; what differs in there is as in 7.2 */
    SIM_G2,             /* conversion in place */
} SimGeneration;

typedef struct SimConfig {
    bool kvm;                   /* guest code runs on the real KVM */
    SimGeneration generation;
    uint32_t vm_types;          /* bit n: VM type n is offered */
    bool scramble;              /* contents change where they are undefined */
    char *log;                  /* path of the log, or NULL */
    char *report;               /* path of the report, or NULL */
} SimConfig;

extern SimConfig sim_config;

/*
 * The fault plan.  To be asked once by each call that it can name; counts
 * the call.  Returns 0, or the -errno to fail with before anything is done.
 * @error_offset: set if the plan gives one; or NULL
 */
int sim_fault(const char *call, uint64_t *error_offset);

/* Read the file that SIMKVM names; a mistake in it ends the program. */
void sim_config_load(void);

/* --- report.c --- */

/* Add a line to the log.  @format: JSON members, without braces, or NULL */
void sim_log(const char *call, int64_t ret, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/*
 * The emulator did what no kernel could answer for: say so on stderr and in
 * the report, and abort.
 */
void sim_violation(const char *format, ...) G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

/* What is not modelled: say its name and end with status 86. */
void sim_unmodelled(const char *format, ...)
    G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

typedef enum SimCount {
    SIM_TO_PRIVATE,             /* pages that became private */
    SIM_TO_SHARED,
    SIM_CONVERSIONS,            /* calls that changed at least one page */
    SIM_POPULATED,              /* pages that a launch took */
    SIM_HOST_TOUCHES,           /* SIGBUS for a private page */
    SIM_FAULTS_INJECTED,
    SIM_EXITS,
    SIM_COUNTS
} SimCount;

void sim_count(SimCount what, uint64_t n);

/* Look how much memory is allocated now; the report has the peak. */
void sim_sample_memory(void);

/* --- interpose.c: descriptors, and the calls of libc --- */

typedef enum SimKind {
    SIM_SYSTEM, SIM_VM, SIM_VCPU, SIM_GMEM, SIM_DEVICE, SIM_SEV, SIM_STATS,
} SimKind;

typedef struct SimCall {
    unsigned long request;
    const char *name;
    int (*fn)(void *object, void *arg);
} SimCall;

/*
 * Make @fd a descriptor of the model.  Takes @fd, and a reference to @object
 * that @destroy gives back after the last descriptor is closed.
 */
int sim_file_add(int fd, SimKind kind, void *object,
                 void (*destroy)(void *object));

/*
 * The object behind a descriptor, if it is of that kind, else NULL.  It stays
 * until sim_file_put(*file).
 */
void *sim_file_get(int fd, SimKind kind, SimFile **file);
void sim_file_put(SimFile *file);

/* libc's own, past the model. */
int sim_real_ioctl(int fd, unsigned long request, void *arg);
void *sim_real_mmap(void *addr, size_t len, int prot, int flags, int fd,
                    off_t offset);
int sim_real_munmap(void *addr, size_t len);
int sim_real_close(int fd);
int sim_real_open(const char *path, int flags);
int sim_real_fallocate(int fd, int mode, off_t offset, off_t len);

/* Copy, or -EFAULT; a page that cannot be touched raises no signal. */
int sim_copy_from_user(void *dst, const void *user, size_t len);
int sim_copy_to_user(void *user, const void *src, size_t len);

/* --- bitmap.c: a bit a page, sparse --- */

typedef struct SimBitmap {
    uint64_t **chunks;          /* by page >> 18; NULL: all zero */
    uint64_t nr_chunks;
} SimBitmap;

/* For pages 0 to @pages - 1. */
void sim_bitmap_init(SimBitmap *b, uint64_t pages);
void sim_bitmap_free(SimBitmap *b);
bool sim_bitmap_test(const SimBitmap *b, uint64_t page);
/* Returns how many bits changed. */
uint64_t sim_bitmap_fill(SimBitmap *b, uint64_t page, uint64_t pages, bool on);
/*
 * The first page from @page on, before @end, whose bit differs from that of
 * @page; @end if there is none.
 */
uint64_t sim_bitmap_run(const SimBitmap *b, uint64_t page, uint64_t end);
/* Has any of the pages a bit that is @on? */
bool sim_bitmap_any(const SimBitmap *b, uint64_t page, uint64_t pages, bool on);

/* --- memory.c: guest_memfd, memslots, shared and private --- */

typedef struct SimSlot {
    uint32_t id;                /* with the address space in bits 16-31 */
    uint32_t flags;
    uint64_t gpa, size;         /* bytes */
    uint8_t *hva;
    SimGmem *gmem;              /* with a reference, or NULL: plain slot */
    uint64_t offset;            /* bytes, in the file */
    uint64_t *dirty;            /* a bit a page, if it logs */
} SimSlot;

typedef struct SimMapping {
    uint8_t *addr;
    size_t len;
    uint64_t offset;
    int prot;
} SimMapping;

struct SimGmem {
    int refs;                   /* atomic: descriptors and slots */
    SimVm *vm;                  /* with a reference */
    int fd;                     /* of the model's own */
    uint64_t size;              /* bytes */
    uint64_t flags;             /* GUEST_MEMFD_FLAG_* as asked for */
    uint8_t *view;              /* all of it, whatever the state of a page */
    pthread_mutex_t lock;       /* for what follows */
    SimBitmap private;          /* in place only: state of the pages */
    SimBitmap populated;        /* pages that a launch command has assigned */
    GArray *mappings;           /* SimMapping: the emulator's */
    GArray *bindings;           /* SimSlot *: may be stale in nothing */
    GArray *pins;               /* SimPin, from the fault plan */
};

/*
 * The memslot of address space 0 at a gpa, or NULL.  Caller holds vm->lock.
 */
SimSlot *sim_slot_find(SimVm *vm, uint64_t gpa);

/* Is the page private?  Caller holds vm->lock.  A gpa without slot is not. */
bool sim_gpa_private(SimVm *vm, uint64_t gpa);

/*
 * Contents of the page as the guest would see them if its state were
 * @private; NULL if there is nothing.  Caller holds vm->lock.  The page may be
 * the emulator's memory: only sim_copy_*_user() for it, if @private is false.
 */
uint8_t *sim_gpa_page(SimVm *vm, uint64_t gpa, bool private);

int sim_gmem_create(SimVm *vm, struct kvm_create_guest_memfd *args);
int sim_gmem_convert(SimGmem *gmem, struct gmem_memory_attributes2 *args);
int sim_vm_set_attributes(SimVm *vm, struct kvm_memory_attributes *args);
int sim_set_region(SimVm *vm, const struct kvm_userspace_memory_region2 *r);
void sim_gmem_put(SimGmem *gmem);
void *sim_gmem_mmap(SimGmem *gmem, void *addr, size_t len, int prot, int flags,
                    int fd, off_t offset);
/* Mappings of any guest_memfd in the range are gone. */
void sim_gmem_unmapped(void *addr, size_t len);
/* Scramble private pages that no launch command has populated. */
void sim_vm_scramble_unpopulated(SimVm *vm);

/*
 * Is @addr, where SIGBUS was raised, in a mapping of a guest_memfd?  Sets
 * its offset in the file.
 */
bool sim_gmem_address(const void *addr, uint64_t *offset);

/* --- vm.c --- */

typedef enum SimLaunch {
    SIM_LAUNCH_NONE,            /* not begun */
    SIM_LAUNCH_INIT,            /* KVM_SEV_INIT2 */
    SIM_LAUNCH_STARTED,         /* SNP_LAUNCH_START, KVM_TDX_INIT_VM */
    SIM_LAUNCH_FINISHED,
} SimLaunch;

struct SimVm {
    int refs;                   /* atomic: descriptors, vCPUs, files */
    int fd;                     /* in kvm mode that of the real VM, else -1 */
    uint32_t type;              /* KVM_X86_*_VM */
    pthread_mutex_t lock;       /* for what follows */
    GTree *slots;               /* gpa -> SimSlot, by address space and gpa */
    GHashTable *slots_by_id;
    SimBitmap private;          /* VM-wide state, generations 0 and 1 */
    GPtrArray *vcpus;           /* SimVcpu *, no references */
    GHashTable *kept;           /* state that is set and given back */
    GArray *ioeventfds;         /* struct kvm_ioeventfd */
    uint64_t hypercalls;        /* KVM_CAP_EXIT_HYPERCALL */
    bool irqchip;
    bool apic_bus_cycles_set;   /* KVM_CAP_X86_APIC_BUS_CYCLES_NS */
    SimLaunch launch;
    GChecksum *mrtd;            /* TDX: what was measured so far */
    uint8_t digest[48];         /* SNP: so far; TDX: when it is finalized */
    uint64_t launch_pages;      /* pages that launch commands took */
    uint64_t measured_pages;    /* of these, pages whose contents counts */
    uint64_t vmsa_features;
    void *tdx;                  /* tdx.c's own */
};

SimVm *sim_vm_ref(SimVm *vm);
void sim_vm_unref(SimVm *vm);

/* Has this type of VM private memory? */
static inline bool sim_vm_has_private(const SimVm *vm)
{
    return vm->type != KVM_X86_DEFAULT_VM;
}

/* --- vcpu.c, cpu.c --- */

struct SimVcpu {
    SimVm *vm;                  /* with a reference */
    int id;
    int fd;                     /* the emulator's */
    struct kvm_run *run;        /* the model's own mapping of it */
    pthread_mutex_t lock;       /* for what follows */
    GHashTable *kept;           /* state that is set and given back, by name */
    GHashTable *msrs;           /* index -> uint64_t */
    struct kvm_cpuid2 *cpuid;   /* as set */
    SimScript *script;          /* scripted mode */
    bool tdx_initialized;
};

/* Returns a list of what the model supports; g_free() it. */
struct kvm_cpuid2 *sim_cpuid_supported(void);

/* --- script.c --- */

int sim_script_run(SimVcpu *vcpu);

/* --- sev.c, tdx.c: launch commands --- */

/* KVM_MEMORY_ENCRYPT_OP of an SNP VM.  Takes vm->lock. */
int sim_sev_vm_op(SimVm *vm, struct kvm_sev_cmd *cmd);
/* KVM_X86_SEV_VMSA_FEATURES of the system. */
uint64_t sim_sev_vmsa_features(void);
/* An ioctl on /dev/sev. */
int sim_sev_device_ioctl(unsigned long request, void *arg);

/* KVM_MEMORY_ENCRYPT_OP of a TDX VM and of its vCPUs.  Take vm->lock. */
int sim_tdx_vm_op(SimVm *vm, struct kvm_tdx_cmd *cmd);
int sim_tdx_vcpu_op(SimVcpu *vcpu, struct kvm_tdx_cmd *cmd);
void sim_tdx_free(SimVm *vm);

/* --- measure.c: see design of launch digests in docs/testing.md --- */

/* Extend an SNP launch digest by one page.  @page is NULL where contents do
 * not count. */
void sim_measure_snp(uint8_t digest[48], uint8_t type, uint64_t gpa,
                     const uint8_t *page);
/* Add a page to an MRTD, and its contents if @page is not NULL. */
void sim_measure_tdx_add(GChecksum *mrtd, uint64_t gpa);
void sim_measure_tdx_extend(GChecksum *mrtd, uint64_t gpa,
                            const uint8_t *page);

#endif
