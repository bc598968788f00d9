/*
 * simkvm: a model of KVM's side of guest_memfd, preloaded under an emulator
 *
 * What the model's source files share.  The rules it keeps are those of a
 * kernel; where one is not obvious, its place says where it comes from.
 *
 * Handlers return what the system call would: a value >= 0, or -errno.
 *
 * Locks, in the order in which they are taken: SimVm.lock, SimGmem.lock, and
 * the inner ones of vCPUs, files and reports, under which nothing else is
 * taken.
 * They are those of pthreads, because ThreadSanitizer knows them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SIMKVM_H
#define SIMKVM_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <glib.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>

#include "../../accel/kvm/guest-memfd-uapi.h"

#define SIM_PAGE 4096ULL
#define SIM_PAGE_SHIFT 12
#define SIM_DIGEST 48                   /* bytes of a launch digest */
#define SIM_TSC_KHZ 2500000             /* a multiple of 25 MHz, as TDX's is */

typedef struct SimVm SimVm;
typedef struct SimVcpu SimVcpu;
typedef struct SimGmem SimGmem;
typedef struct SimFile SimFile;
typedef struct SimScript SimScript;

/* --- config.c: the configuration, in the file that SIMKVM names --- */

typedef enum SimGeneration {
    SIM_G0,             /* before Linux 6.18 */
    SIM_G1,             /* 6.18 to 7.3; what differs in there is as in 7.2 */
    SIM_G2,             /* conversion in place */
} SimGeneration;

typedef struct SimConfig {
    bool kvm;                   /* guest code runs on the real KVM */
    SimGeneration generation;
    uint32_t vm_types;          /* bit n: VM type n is offered */
    bool strict;                /* what a kernel refuses is a violation */
    bool scramble;              /* contents change where they are undefined */
    char *log;                  /* path of the log, or NULL */
    char *report;               /* path of the report, or NULL */
    char *control;              /* of two pipes, less .out and .in; or NULL */
} SimConfig;

extern SimConfig sim_config;

/*
 * The fault plan.  Each call that it can name has to ask once; counts the
 * call.  Returns 0, or the -errno to fail with before anything is done.
 * @error_offset: set if the plan gives one; or NULL
 */
int sim_fault(const char *call, uint64_t *error_offset);
/* The same for any ioctl; 0 if it is none that only fails by plan. */
int sim_fault_ioctl(const char *call);

/* Read the file that SIMKVM names; a mistake in it ends the program. */
void sim_config_load(void);

/*
 * A call with arguments that a kernel refuses with @error, a positive errno.
 * No emulator has to make it, so it is a violation.  Without "strict", as in
 * the conformance suite, it is answered.  Returns -@error.
 */
int sim_refuse(int error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/*
 * Words of a line of the configuration.  Both end the program on a mistake.
 * @name: "key" of a word "key=value"; the word is taken out of @words.
 * Returns the value, or NULL if there is no such word; do not free it.
 */
const char *sim_option(GPtrArray *words, const char *name);
uint64_t sim_number(const char *word);
/* Is @word @yes, or is it @no?  Anything else is a mistake. */
bool sim_choice(const char *word, const char *yes, const char *no);
/* The value of an errno's name, or "0". */
int sim_errno(const char *name);
void sim_mistake(const char *format, ...) G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

/* --- report.c --- */

/* Add a line to the log.  @format: JSON members, without braces, or NULL */
void sim_log(const char *call, int64_t ret, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/*
 * The emulator made a call that it must not make: prints that on stderr and in
 * the report, and aborts.
 */
void sim_violation(const char *format, ...) G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

/* A call is not modelled: prints its name and ends with status 86. */
void sim_unmodelled(const char *format, ...)
    G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

typedef enum SimCount {
    SIM_TO_PRIVATE,             /* pages that became private */
    SIM_TO_SHARED,
    SIM_CONVERSIONS,            /* calls that changed at least one page */
    SIM_POPULATED,              /* pages that a launch took */
    SIM_HOST_TOUCHES,           /* SIGBUS for a private page */
    SIM_FAULTS_INJECTED,
    SIM_PINS_MET,               /* conversions that a pin made fail */
    SIM_EXITS,
    SIM_VMS,                    /* that were created */
    SIM_VMS_ALIVE,              /* that something still refers to */
    SIM_VCPUS_ALIVE,
    SIM_GMEMS_ALIVE,
    SIM_COUNTS
} SimCount;

/* Returns what it is now. */
uint64_t sim_count(SimCount what, uint64_t n);
uint64_t sim_counted(SimCount what);

/* Bytes allocated now: in guest_memfd, and in the other memory of slots. */
void sim_report_memory(uint64_t gmem, uint64_t other);
/*
 * Sets the report's entry for a VM's launch, a JSON value.
 * @vm: the n-th of the process
 */
void sim_report_launch(uint64_t vm, const char *json);
/* Write the report now. */
void sim_report_write(void);

/* --- interpose.c: descriptors, and the calls of libc --- */

typedef enum SimKind {
    SIM_SYSTEM, SIM_VM, SIM_VCPU, SIM_GMEM, SIM_SEV,
} SimKind;


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

/* An ioctl on a descriptor of the model. */
int sim_ioctl(SimKind kind, void *object, int fd, unsigned long request,
              void *arg);

/* libc's own, past the model. */
int sim_real_ioctl(int fd, unsigned long request, void *arg);
void *sim_real_mmap(void *addr, size_t len, int prot, int flags, int fd,
                    off_t offset);
int sim_real_munmap(void *addr, size_t len);
int sim_real_close(int fd);
int sim_real_open(const char *path, int flags);
/* Returns 0 or -errno. */
int sim_real_fallocate(int fd, int mode, off_t offset, off_t len);

int sim_real_dup(int fd);
struct stat;
int sim_real_fstat(int fd, struct stat *st);

/* Copy, or -EFAULT; a page that cannot be touched raises no signal. */
int sim_copy_from_user(void *dst, const void *user, size_t len);
int sim_copy_to_user(void *user, const void *src, size_t len);

/* --- bitmap.c: a bit per page, sparse --- */

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
    uint8_t *dirty;             /* a bit per page, if it logs */
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
    uint64_t number;            /* the n-th of the process, from 0 */
    uint64_t size;              /* bytes */
    uint64_t flags;             /* GUEST_MEMFD_FLAG_* as asked for */
    uint8_t *view;              /* all of it, whatever the state of a page */
    pthread_mutex_t lock;       /* for what follows */
    SimBitmap private;          /* in place only: state of the pages */
    SimBitmap populated;        /* pages that a launch command has assigned */
    GArray *mappings;           /* SimMapping by address: the emulator's */
};

/*
 * Somebody else's hold on pages of a file: conversion to private fails on
 * them so many times, UINT64_MAX: for ever.
 */
typedef struct SimPin {
    uint64_t file;              /* SimGmem.number */
    uint64_t offset, size;      /* bytes */
    uint64_t times;
} SimPin;

/* The first pinned offset in a range, or UINT64_MAX; uses up one time. */
uint64_t sim_pinned(uint64_t file, uint64_t offset, uint64_t size);
void sim_pin(const SimPin *pin);

/* The memslot of address space 0 at a gpa, or NULL.  With vm->lock held. */
SimSlot *sim_slot_find(SimVm *vm, uint64_t gpa);

/*
 * Is the page private?  A gpa without a slot is not, unless the state is kept
 * VM-wide.  With vm->lock held.
 */
bool sim_gpa_private(SimVm *vm, uint64_t gpa);

/*
 * Is a page in there that has a guest_memfd not in that state?  @where is set
 * to its gpa.  Pages beyond the end of all addresses do not count.  With
 * vm->lock held.
 */
bool sim_state_differs(SimVm *vm, uint64_t gpa, uint64_t pages, bool private,
                       uint64_t *where);

/*
 * The page that the guest sees there, its state being @private; NULL if there
 * is none.  Private and in-place contents is the model's own view; shared
 * contents may be the emulator's memory: use sim_copy_*_user() for that.
 * With vm->lock held.
 */
uint8_t *sim_gpa_page(SimVm *vm, uint64_t gpa, bool private);

/*
 * The guest's access to @len bytes within a page, by its state.  Returns 0;
 * -ENOENT: no slot, it leaves as MMIO; -EFAULT: the page cannot be had.
 */
int sim_guest_access(SimVm *vm, uint64_t gpa, void *data, size_t len,
                     bool write);

int sim_gmem_create(SimVm *vm, struct kvm_create_guest_memfd *args);
int sim_gmem_convert(SimGmem *gmem, struct gmem_memory_attributes2 *args);
int sim_gmem_fallocate(SimGmem *gmem, int mode, off_t offset, off_t len);
int sim_vm_set_attributes(SimVm *vm, struct kvm_memory_attributes *args);
int sim_set_region(SimVm *vm, const struct kvm_userspace_memory_region2 *r);
int sim_get_dirty_log(SimVm *vm, const struct kvm_dirty_log *log);
void sim_slot_free(SimSlot *slot);

/* What the VM has, or the system if it is NULL. */
uint64_t sim_gmem_flags(const SimVm *vm);       /* _CAP_GUEST_MEMFD_FLAGS */
bool sim_has_gmem(const SimVm *vm);             /* _CAP_GUEST_MEMFD */
bool sim_has_readonly(const SimVm *vm);         /* _CAP_READONLY_MEM */
uint32_t sim_address_spaces(const SimVm *vm);   /* _CAP_MULTI_ADDRESS_SPACE */

SimGmem *sim_gmem_ref(SimGmem *gmem);
void sim_gmem_unref(SimGmem *gmem);
/* mmap() of a guest_memfd: the address, or MAP_FAILED with errno set. */
void *sim_gmem_mmap(SimGmem *gmem, void *addr, size_t len, int prot, int flags,
                    int fd, off_t offset);
/* To be called before the range is unmapped or mapped anew. */
void sim_gmem_unmap(void *addr, size_t len);
/*
 * The guest_memfd that is mapped at @addr, with a reference, and the offset
 * there; or NULL.
 */
SimGmem *sim_gmem_at(const void *addr, uint64_t *offset);
/*
 * A launch is finished.  Pages that are private and that no launch command
 * has taken have undefined contents from now on: it is a violation if that
 * was something else than zeros.  With vm->lock held.
 */
void sim_vm_launch_finished(SimVm *vm);

/*
 * A launch command takes a private page, as kvm_gmem_populate() does.  With
 * vm->lock held.
 * @source: the emulator's, to be copied to the page; NULL: take what is there
 * @take: what the command does with the page; returns 0, or -errno, and then
 *        the page is not taken
 */
int sim_populate(SimVm *vm, uint64_t gpa, const void *source,
                 int (*take)(void *opaque, uint64_t gpa, uint8_t *page),
                 void *opaque);
/* Take the memory that the VM uses now into the report.  Takes vm->lock. */
void sim_vm_sample_memory(SimVm *vm);
/*
 * The same after a launch command.  It is slow, so for later VMs it is done
 * only when the launch is finished.
 */
void sim_vm_sample_launch(SimVm *vm);
/* The same for all VMs that have a guest_memfd. */
void sim_sample_memory(void);

/* --- vm.c --- */

typedef enum SimLaunch {
    SIM_LAUNCH_NONE,            /* not begun */
    SIM_LAUNCH_INIT,            /* KVM_SEV_INIT2 */
    SIM_LAUNCH_STARTED,         /* SNP_LAUNCH_START, KVM_TDX_INIT_VM */
    SIM_LAUNCH_FINISHED,
} SimLaunch;

struct SimVm {
    uint64_t number;            /* the n-th of the process, from 1 */
    int real;                   /* in kvm mode: the real VM, our descriptor */
    void *real_slots;           /* real.c's own */
    int refs;                   /* atomic: descriptors, vCPUs, files */
    uint32_t type;              /* KVM_X86_*_VM */
    pthread_mutex_t lock;       /* for what follows */
    GPtrArray *slots;           /* SimSlot * */
    GPtrArray *gmems;           /* SimGmem *, no references */
    SimBitmap private;          /* VM-wide state, generations 0 and 1 */
    GPtrArray *vcpus;           /* SimVcpu *, no references */
    GHashTable *kept;           /* state that is set and given back */
    GArray *ioeventfds;         /* struct kvm_ioeventfd */
    uint64_t hypercalls;        /* KVM_CAP_EXIT_HYPERCALL */
    bool irqchip;
    SimLaunch launch;
    GChecksum *mrtd;            /* TDX: what was measured so far */
    uint8_t digest[SIM_DIGEST]; /* so far; SNP: without VMSAs */
    uint8_t final[SIM_DIGEST];  /* SNP: with VMSAs, once there are any */
    bool has_vmsas;             /* SNP: vCPUs' state was taken */
    uint64_t features;          /* SNP: of the guest, SEV_FEATURES */
    uint64_t policy;            /* SNP: the guest's */
    uint64_t launch_pages;      /* pages that launch commands took */
    uint64_t measured_pages;    /* of these, pages whose contents counts */
    int sev_fd;                 /* SNP: what its launch was started with */
    void *tdx;                  /* tdx.c's own */
};

/* Return a descriptor, or -errno. */
int sim_open_kvm(int flags);
int sim_open_sev(int flags);

SimVm *sim_vm_ref(SimVm *vm);
void sim_vm_unref(SimVm *vm);

/* A handler's answer in kvm mode: ask the real KVM. */
#define SIM_PASS INT32_MIN

/* KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, as applied: not in a release yet. */
#define SIM_CAP_GMEM_ATTRIBUTES 252

/* JSON members that the log line of this call shall have. */
void sim_detail(const char *format, ...) G_GNUC_PRINTF(1, 2);

/*
 * Does an eventfd wait for this write of the guest?  Then it is signalled,
 * and the write does not leave KVM.
 */
bool sim_ioeventfd_signal(SimVm *vm, bool port, uint64_t addr, uint32_t len,
                          uint64_t value);

/* Is the state of pages kept in their guest_memfd? */
static inline bool sim_in_place(void)
{
    return sim_config.generation == SIM_G2;
}

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
    void *runner;               /* real.c's own */
    bool tdx_initialized;
};

/* Returns a descriptor, or -errno. */
int sim_vcpu_create(SimVm *vm, int id);
int sim_vcpu_ioctl(SimVcpu *vcpu, int fd, unsigned long request, void *arg);

/* Set up an exit, and return what KVM_RUN answers with it. */
int sim_exit(SimVcpu *vcpu, uint32_t reason, const char *name);
int sim_exit_hypercall(SimVcpu *vcpu, uint64_t gpa, uint64_t pages,
                       bool private);
int sim_exit_memory_fault(SimVcpu *vcpu, uint64_t gpa, uint64_t size,
                          bool private);
/* The emulator's answer to a hypercall; a violation if no kernel takes it. */
uint64_t sim_hypercall_answer(SimVcpu *vcpu);
/* A violation if so many faults in a row have not changed the page. */
void sim_check_progress(uint64_t faults, uint64_t gpa, bool private);

/* State that the emulator sets, and is given back as it is. */
typedef struct SimKept {
    SimKind kind;
    uint32_t get, set;          /* ioctls; 0: there is none */
    const char *get_name, *set_name;
    const char *key;
    size_t size;                /* bytes */
} SimKept;

const SimKept *sim_kept_find(SimKind kind, unsigned long request, bool *set);
/*
 * What a GET ioctl of kept state would answer; in kvm mode, what it answers.
 * Takes vcpu->lock.
 */
int sim_vcpu_get(SimVcpu *vcpu, unsigned long request, void *state);
/* An MSR; @otherwise if it was never set.  Takes vcpu->lock. */
uint64_t sim_vcpu_msr(SimVcpu *vcpu, uint32_t index, uint64_t otherwise);

GHashTable *sim_kept_new(void);
int sim_kept_access(GHashTable *table, const SimKept *kept, bool set,
                    void *arg);

/* Returns a list of what the model supports; g_free() it. */
struct kvm_cpuid2 *sim_cpuid_supported(void);
extern const uint32_t sim_msrs[];
extern const uint32_t sim_nr_msrs;

/* --- script.c --- */

/* A line of the configuration for vCPU @id, or for all of them if it is -1. */
void sim_script_add(int id, const char *verb, GPtrArray *words);
/* KVM_RUN in scripted mode. */
int sim_script_run(SimVcpu *vcpu);
/*
 * The vCPU is gone.  Its script stays: the next vCPU of that number, of any
 * VM, goes on with it.
 */
void sim_script_leave(SimVcpu *vcpu);

/* The next number of a sequence, 0 to @below - 1.  *@state is not 0. */
uint64_t sim_draw(uint64_t *state, uint64_t below);

/* --- hostile.c: requests of a hostile guest, and a reference for them --- */

typedef struct SimHostile SimHostile;

typedef enum SimKindOfRequest {
    SIM_MAP_GPA,                /* a hypercall */
    SIM_FAULT,                  /* a memory fault */
    SIM_DEVICE_READ,            /* MMIO */
    SIM_NO_ENTRY,               /* KVM_RUN fails, and no exit says why */
} SimKindOfRequest;

typedef struct SimRequest {
    SimKindOfRequest kind;
    uint64_t gpa, pages;
    uint64_t attributes;        /* beyond the state */
    bool private;
    bool own;                   /* no other vCPU asks for these pages */
    bool unsure;                /* it may have been done, or not */
    uint64_t begun, ended;
    uint64_t failures;          /* of calls, in its time */
    uint64_t answer;            /* 0, or errno */
} SimRequest;

/* A vCPU that asks for all kinds of things, the same for the same @seed. */
SimHostile *sim_hostile_new(SimVcpu *vcpu, uint64_t seed);
/*
 * Another vCPU goes on.  If it belongs to another VM, all requests so far are
 * dropped, and the reference begins with the pages of that VM.
 */
void sim_hostile_go_on(SimHostile *h, SimVcpu *vcpu);
/* The next one, which begins now. */
const SimRequest *sim_hostile_draw(SimHostile *h);
/* It has ended.  A wrong answer is a violation. */
void sim_hostile_answered(SimHostile *h, uint64_t answer);
/*
 * No request is in flight: it is a violation if a page is in a state that the
 * requests so far cannot have led to.  Drops these requests.
 */
void sim_hostile_check(SimVcpu *vcpu);
/*
 * Which pages are private: SHA-256, in hexadecimal, of a line "GPA SIZE" for
 * each run, as short as can be and sorted; in bytes, hexadecimal without 0x.
 * Pages that no slot maps do not count; those of two slots do twice.
 */
char *sim_hostile_digest(void);

/* --- real.c: kvm mode, the real KVM below the model --- */

/* Returns a descriptor of a real VM of the default type, or -errno. */
int sim_real_create_vm(SimVm *vm);
void sim_real_free_vm(SimVm *vm);
void sim_real_free_vcpu(SimVcpu *vcpu);
/* Returns a guest_memfd of the real VM, mappable and shared, or -errno. */
int sim_real_create_gmem(SimVm *vm, uint64_t size);
/* Bytes allocated in a real guest_memfd. */
uint64_t sim_real_allocated(int fd);
/*
 * A slot is as @r says from now on; @slot is the model's, NULL if it is gone.
 * With vm->lock held.
 */
int sim_real_set_region(SimVm *vm, const SimSlot *slot,
                        const struct kvm_userspace_memory_region2 *r);
/* The VM-wide state of pages has changed.  With vm->lock held. */
void sim_real_attributes_changed(SimVm *vm, uint64_t gpa, uint64_t size);
/*
 * KVM_SET_CPUID2 of a TDX guest: takes away features of the model's TDX module
 * that the real KVM lacks.
 */
int sim_real_set_cpuid(int fd, const struct kvm_cpuid2 *cpuid);
/* KVM_RUN in kvm mode. */
int sim_real_run(SimVcpu *vcpu, int fd);

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

/* --- vmsa.c --- */

/*
 * The page that KVM makes of a vCPU's state when an SNP launch is finished.
 * Returns 0, or -EINVAL.  Takes vcpu->lock.
 * @features: the guest's, in SEV_FEATURES
 */
int sim_vmsa(SimVcpu *vcpu, uint64_t features, uint8_t page[SIM_PAGE]);

/* --- measure.c: launch digests --- */

/*
 * Extend an SNP launch digest by one page.
 * @page: its contents, or NULL where that does not count
 */
void sim_measure_snp(uint8_t digest[SIM_DIGEST], uint8_t type, uint64_t gpa,
                     const uint8_t *page);
/* Add a page to an MRTD, and then its contents, if that shall count. */
void sim_measure_tdx_add(GChecksum *mrtd, uint64_t gpa);
void sim_measure_tdx_extend(GChecksum *mrtd, uint64_t gpa,
                            const uint8_t *page);
/* The MRTD so far; more can be added. */
void sim_measure_tdx_digest(const GChecksum *mrtd,
                            uint8_t digest[SIM_DIGEST]);
void sim_digest_hex(const uint8_t digest[SIM_DIGEST],
                    char hex[2 * SIM_DIGEST + 1]);

/* Adds a member to @json, the bytes at @data in hexadecimal. */
void sim_json_hex(GString *json, const char *name, const void *data,
                  size_t len);

#endif
