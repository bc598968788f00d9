/*
 * KVM guest_memfd: what the host can do, files, memslots
 *
 * Only this file makes system calls of KVM's guest_memfd.
 *
 * Replacing a slot.  A bound slot is immutable, and the memory listener may
 * turn dirty logging on and off while vCPUs run (migration, dirty rate, a
 * display), so such a slot is deleted and created again.  In between KVM has
 * no memory there: a vCPU's data access would leave as KVM_EXIT_MMIO, which
 * QEMU would still carry out on its own view of RAM, but not atomically; an
 * instruction fetch or a page walk could not be carried out at all and would
 * end the VM.  So no vCPU may be in KVM_RUN in between.
 * accel_ioctl_inhibit_begin() gives that: it kicks every vCPU out and holds
 * off every ioctl that is issued without the BQL until
 * accel_ioctl_inhibit_end(); QEMU's own listener relies on it likewise when
 * slots that overlap change.  A vCPU that was kicked out has completed its
 * instruction or will redo it, so it sees the old slot or the new one.
 *
 * Nothing else needs a slot meanwhile: device models, vhost and assigned
 * devices use the mapping, which stays; KVM's other accesses to guest memory
 * (clock, steal time, asynchronous page faults) are made in KVM_RUN.  The
 * contents stay in the file, which the slots only refer to.
 *
 * Dirty pages are not lost either.  When logging starts, its user takes
 * every page for dirty first and asks for the log afterwards; pages that are
 * written before the new slot exists are among these.  When logging ends,
 * the log is not needed any more.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/ioctl.h>
#ifdef CONFIG_NUMA
#include <numaif.h>
#endif
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "system/accel-blocker.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-rebuild.h"
#include "system/kvm_int.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "gmem/accel/kvm/guest-memfd-policy.h"
#include "gmem/accel/kvm/guest-memfd-uapi.h"
#include "gmem/trace.h"

#define GMEM_FLAGS (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* Returns a file with close-on-exec set, or -errno. */
static int create_file(uint64_t size)
{
    struct kvm_create_guest_memfd args = {
        .size = size,
        .flags = GMEM_FLAGS,
    };
    int fd = kvm_vm_ioctl(kvm_state, KVM_CREATE_GUEST_MEMFD, &args);

    /* The kernel has no flag for this; nothing forks until we return. */
    if (fd >= 0) {
        qemu_set_cloexec(fd);
    }
    return fd;
}

/*
 * Can the state of pages be changed?  There is no reliable number to ask for,
 * but a request for the state that a page already has does nothing where it
 * works.  It fails with EINVAL for a VM type without private memory, and with
 * ENOTTY on a kernel without conversion.
 */
static bool probe_conversion(int fd)
{
    struct gmem_memory_attributes2 shared = {
        .size = qemu_real_host_page_size(),
    };

    return ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &shared) == 0;
}

/*
 * Is a policy kept in the file?  Where guest_memfd does not know policies,
 * mbind() succeeds and leaves the policy with the mapping, where no
 * allocation looks for it.  Then a second mapping does not show it.
 */
static bool probe_numa_policy(int fd)
{
    bool kept = false;
#ifdef CONFIG_NUMA
    size_t size = qemu_real_host_page_size();
    unsigned long nodes[1024 / BITS_PER_LONG] = { 0 };
    unsigned long maxnode = sizeof(nodes) * BITS_PER_BYTE;
    void *a = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *b = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int mode = MPOL_DEFAULT;

    if (a != MAP_FAILED && b != MAP_FAILED &&
        get_mempolicy(NULL, nodes, maxnode, NULL, MPOL_F_MEMS_ALLOWED) == 0 &&
        mbind(a, size, MPOL_BIND, nodes, maxnode, 0) == 0 &&
        get_mempolicy(&mode, NULL, 0, b, MPOL_F_ADDR) == 0) {
        kept = mode == MPOL_BIND;
    }
    if (a != MAP_FAILED) {
        munmap(a, size);
    }
    if (b != MAP_FAILED) {
        munmap(b, size);
    }
#endif
    return kept;
}

int kvm_guest_memfd_set_private(int fd, uint64_t offset, uint64_t size,
                                bool private, uint64_t *error_offset)
{
    struct gmem_memory_attributes2 args = {
        .offset = offset,
        .size = size,
        .attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
    };
    int ret = ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &args) ? -errno : 0;

    if (ret == -EAGAIN) {
        *error_offset = args.error_offset;
    }
    trace_kvm_guest_memfd_set_private(fd, offset, size, private, ret,
                                      args.error_offset);
    return ret;
}

static void probe(GuestMemfdCaps *caps)
{
    int attributes, flags, fd;

    if (kvm_vm_check_extension(kvm_state, KVM_CAP_GUEST_MEMFD) <= 0 ||
        kvm_vm_check_extension(kvm_state, KVM_CAP_USER_MEMORY2) <= 0) {
        caps->missing = BIT(GUEST_MEMFD_MISSING_GUEST_MEMFD);
        caps->missing_text = "KVM offers no guest_memfd to this type of VM "
                             "(KVM_CAP_GUEST_MEMFD, Linux 6.18)";
        return;
    }

    attributes = kvm_vm_check_extension(kvm_state, KVM_CAP_MEMORY_ATTRIBUTES);
    if (attributes > 0 && (attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE)) {
        caps->generation = GUEST_MEMFD_GENERATION_LEGACY;
    }

    flags = kvm_vm_check_extension(kvm_state, KVM_CAP_GUEST_MEMFD_FLAGS);
    caps->flags = MAX(flags, 0);
    if (!(caps->flags & GUEST_MEMFD_FLAG_MMAP)) {
        caps->missing |= BIT(GUEST_MEMFD_MISSING_MMAP_FLAG);
    }
    if (!(caps->flags & GUEST_MEMFD_FLAG_INIT_SHARED)) {
        caps->missing |= BIT(GUEST_MEMFD_MISSING_INIT_SHARED_FLAG);
    }
    if (caps->missing) {
        caps->missing_text = "KVM cannot map guest_memfd into QEMU for this "
                             "type of VM (KVM_CAP_GUEST_MEMFD_FLAGS lacks "
                             "MMAP or INIT_SHARED, Linux 6.18)";
        return;
    }

    fd = create_file(qemu_real_host_page_size());
    if (fd < 0) {
        caps->missing = BIT(GUEST_MEMFD_MISSING_CREATE);
        caps->missing_text = "KVM_CREATE_GUEST_MEMFD fails in spite of what "
                             "KVM says it offers";
        return;
    }
    caps->generation = probe_conversion(fd) ? GUEST_MEMFD_GENERATION_IN_PLACE
                                            : GUEST_MEMFD_GENERATION_MAPPABLE;
    caps->numa_policy = probe_numa_policy(fd);
    close(fd);
}

const GuestMemfdCaps *kvm_guest_memfd_caps(void)
{
    static const GuestMemfdCaps no_kvm = {
        .missing = BIT(GUEST_MEMFD_MISSING_KVM),
        .missing_text = "QEMU is not running with KVM (use -accel kvm)",
    };
    static GuestMemfdCaps caps;
    static bool probed;

    if (!kvm_enabled()) {
        return &no_kvm;
    }
    if (!probed) {
        probe(&caps);
        probed = true;
        trace_kvm_guest_memfd_probe(GuestMemfdGeneration_str(caps.generation),
                                    caps.flags, caps.numa_policy);
    }
    return &caps;
}

int kvm_guest_memfd_create(uint64_t size, Error **errp)
{
    int fd = create_file(size);

    if (fd < 0) {
        error_setg_errno(errp, -fd, "cannot create a guest_memfd of 0x%" PRIx64
                         " bytes", size);
        return -1;
    }
    return fd;
}

/* Tell KVM about @s; delete it if @size is 0.  Returns 0 or -errno. */
static int set_region(const GuestMemfd *gmem, const GuestMemfdSlot *s,
                      uint64_t size)
{
    struct kvm_userspace_memory_region2 region = {
        .slot = s->slot | s->as_id << 16,
        .guest_phys_addr = s->gpa,
        .memory_size = size,
        .userspace_addr = (uintptr_t)gmem->host + s->offset,
    };
    int ret;

    if (size) {
        region.flags = s->flags;
    }
    if (size && s->bound) {
        region.flags |= KVM_MEM_GUEST_MEMFD;
        region.guest_memfd = gmem->rb->fd;
        region.guest_memfd_offset = s->offset;
    }
    ret = kvm_vm_ioctl(kvm_state, KVM_SET_USER_MEMORY_REGION2, &region);
    trace_kvm_guest_memfd_set_region(gmem->inode, s->as_id, s->slot, s->gpa,
                                     size, s->offset, region.flags, ret);
    return ret;
}

static int create_slot(GuestMemfd *gmem, GuestMemfdSlot *s)
{
    int ret;

    guest_memfd_slot_decide(&gmem->slots, s);
    ret = set_region(gmem, s, s->size);
    if (ret < 0 && s->bound && !guest_memfd_can_be_private(gmem)) {
        /* All pages are shared, so the mapping serves the guest as well. */
        warn_report_once("KVM does not bind a memslot to the guest_memfd of "
                         "'%s': %s; it uses the mapping instead",
                         memory_region_name(gmem->rb->mr), strerror(-ret));
        s->bound = false;
        s->reason = GUEST_MEMFD_PLAIN_REASON_REFUSED;
        ret = set_region(gmem, s, s->size);
    }
    if (ret < 0) {
        error_report("KVM refuses a memslot for '%s': slot %u, gpa 0x%" PRIx64
                     ", 0x%" PRIx64 " bytes: %s",
                     memory_region_name(gmem->rb->mr), s->slot, s->gpa,
                     s->size, strerror(-ret));
        return ret;
    }
    gmem->bound += s->bound;
    gmem->plain += !s->bound;
    return 0;
}

/*
 * Create @s again, with its present flags, while vCPUs may be running: see the
 * top of this file.  On error the slot is as it was, with @old_flags.
 */
static int replace_slot(GuestMemfd *gmem, GuestMemfdSlot *s,
                        uint32_t old_flags)
{
    GuestMemfdSlot old = *s;
    int ret;

    old.flags = old_flags;
    accel_ioctl_inhibit_begin();
    ret = set_region(gmem, &old, 0);
    if (!ret) {
        ret = create_slot(gmem, s);
        if (ret) {
            set_region(gmem, &old, old.size);
        }
    }
    accel_ioctl_inhibit_end();

    if (ret) {
        s->flags = old.flags;
        s->bound = old.bound;
        s->reason = old.reason;
    } else {
        gmem->replaced++;
    }
    return ret;
}

static GuestMemfdSlot *find_slot(GuestMemfd *gmem, const KVMMemoryListener *kml,
                                 const KVMSlot *slot)
{
    GuestMemfdSlot *s;

    QTAILQ_FOREACH(s, &gmem->slots, next) {
        if (s->as_id == kml->as_id && s->slot == slot->slot) {
            return s;
        }
    }
    return NULL;
}

/* Keep the slots in the order of their addresses. */
static void insert_slot(GuestMemfd *gmem, GuestMemfdSlot *s)
{
    GuestMemfdSlot *other;

    QTAILQ_FOREACH(other, &gmem->slots, next) {
        if (other->as_id > s->as_id ||
            (other->as_id == s->as_id && other->gpa > s->gpa)) {
            QTAILQ_INSERT_BEFORE(other, s, next);
            return;
        }
    }
    QTAILQ_INSERT_TAIL(&gmem->slots, s, next);
}

/*
 * What QEMU asks of a slot, as far as it can be had.  A slot that logs is
 * plain, and a plain slot does not serve private pages.  The log of
 * memory that can be private is not needed: it cannot be migrated.
 */
static uint32_t slot_flags(const GuestMemfd *gmem, const KVMSlot *slot)
{
    uint32_t flags = slot->flags & ~KVM_MEM_GUEST_MEMFD;

    return guest_memfd_can_be_private(gmem) ? flags & ~KVM_MEM_LOG_DIRTY_PAGES
                                            : flags;
}

static int add_slot(GuestMemfd *gmem, const KVMMemoryListener *kml,
                    const KVMSlot *slot)
{
    GuestMemfdSlot *s = g_new0(GuestMemfdSlot, 1);
    int ret;

    s->as_id = kml->as_id;
    s->slot = slot->slot;
    s->flags = slot_flags(gmem, slot);
    s->gpa = slot->start_addr;
    s->size = slot->memory_size;
    s->offset = (uint8_t *)slot->ram - gmem->rb->host;

    ret = create_slot(gmem, s);
    if (ret) {
        g_free(s);
    } else {
        insert_slot(gmem, s);
    }
    return ret;
}

static int delete_slot(GuestMemfd *gmem, GuestMemfdSlot *s)
{
    int ret = set_region(gmem, s, 0);

    if (ret < 0 && !guest_memfd_rebuild_region_failed(false)) {
        error_report("KVM does not delete a memslot of '%s': slot %u, gpa 0x%"
                     PRIx64 ", 0x%" PRIx64 " bytes: %s",
                     memory_region_name(gmem->rb->mr), s->slot, s->gpa,
                     s->size, strerror(-ret));
        return ret;
    }
    QTAILQ_REMOVE(&gmem->slots, s, next);
    g_free(s);
    return 0;
}

/*
 * The flags of a slot change.  Only log_start and log_stop come here, outside
 * a memory transaction: vCPUs run, and are not inhibited yet.
 */
static int update_slot(GuestMemfd *gmem, GuestMemfdSlot *s, uint32_t flags)
{
    uint32_t old_flags = s->flags;
    GuestMemfdSlot want = *s;
    int ret;

    /*
     * Memory that can be private does not log; and a slot must not go, because
     * private pages of a TDX guest would go with it.
     */
    if (flags == old_flags) {
        return 0;
    }
    want.flags = flags;
    guest_memfd_slot_decide(&gmem->slots, &want);
    s->flags = flags;
    if (s->bound || want.bound || (flags ^ old_flags) & KVM_MEM_READONLY) {
        return replace_slot(gmem, s, old_flags);
    }

    /* A plain slot that stays plain learns to log, or not to, as it is. */
    ret = set_region(gmem, s, s->size);
    if (ret) {
        s->flags = old_flags;
    } else {
        s->reason = want.reason;
    }
    return ret;
}

int kvm_guest_memfd_region_result(const KVMSlot *slot, int ret)
{
    return ret < 0 && guest_memfd_rebuild_region_failed(slot->memory_size)
           ? 0 : ret;
}

bool kvm_guest_memfd_set_region(KVMMemoryListener *kml, KVMSlot *slot,
                                bool new, int *ret)
{
    GuestMemfd *gmem = guest_memfd_from_host(slot->ram);
    GuestMemfdSlot *s;

    if (!gmem) {
        return false;
    }

    if (new) {
        *ret = add_slot(gmem, kml, slot);
    } else {
        /* There is none if a new VM could not be created. */
        s = find_slot(gmem, kml, slot);
        *ret = !s ? 0
             : slot->memory_size
             ? update_slot(gmem, s, slot_flags(gmem, slot))
             : delete_slot(gmem, s);
    }
    *ret = kvm_guest_memfd_region_result(slot, *ret);
    if (*ret == 0) {
        slot->old_flags = slot->flags;
    } else if (guest_memfd_can_be_private(gmem)) {
        /* It was reported; our caller would abort, as if this were a bug. */
        exit(1);
    }
    return true;
}

void kvm_guest_memfd_commit(KVMMemoryListener *kml)
{
    GuestMemfd *gmem;

    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        GuestMemfdSlot *s;

        QTAILQ_FOREACH(s, &gmem->slots, next) {
            GuestMemfdSlot want = *s;

            if (s->as_id != kml->as_id || s->bound ||
                s->reason != GUEST_MEMFD_PLAIN_REASON_ALIAS) {
                continue;
            }
            guest_memfd_slot_decide(&gmem->slots, &want);
            if (want.bound) {
                /* It works as it is: what fails here is reported only. */
                replace_slot(gmem, s, s->flags);
            }
        }
    }
}
