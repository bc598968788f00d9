/*
 * RAM blocks that are a KVM guest_memfd: a new VM for the same guest
 *
 * The state of an SEV-SNP or TDX guest cannot be reset, so QEMU closes the VM
 * and creates another (AccelClass::rebuild_guest).  A guest_memfd belongs to
 * one VM, so each block gets a new file, which is mapped in the place of the
 * old one.  What others know of the block stays: its address, its policy and
 * settings.  What they know of its pages does not: no page is private or
 * covered any more, no device has mapped any, and the launch starts again.
 *
 * RAM of a confidential guest starts with zeros.  RAM of other guests keeps
 * its contents, as RAM of other kinds does, so it is copied.
 *
 * No vCPU runs meanwhile, so no page is converted.  Devices of the old guest
 * are reset only when the new VM is there.  So they are stopped first, as those
 * of a VM that is stopped: what they have in flight must not end up in memory
 * that the new guest is launched from, and if no new VM can be made, they must
 * not ask the old one for its state any more.
 *
 * Pages of an old file that a device holds pinned live on until it lets them
 * go, out of everybody's reach.
 *
 * If anything fails, the VM is stopped and does not run again before another
 * reset has succeeded.  Each block is whole then, with its old file or a new
 * one; pages of blocks that were not finished are hidden from devices.  That
 * holds for calls of the kernel's which make memory, memslots or the launch; if
 * QEMU cannot make a vCPU or an interrupt controller again, that is the end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/mman.h>
#ifdef CONFIG_NUMA
#include <numa.h>
#include <numaif.h>
#endif
#include "block/block-global-state.h"
#include "hw/core/boards.h"
#include "hw/core/cpu.h"
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "system/confidential-guest-support.h"
#include "system/cpus.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-launch.h"
#include "gmem/system/guest-memfd-rebuild.h"
#include "system/hostmem.h"
#include "system/kvm.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "system/runstate.h"
#include "gmem/trace.h"

/* Contents are copied in such pieces; where there are no pages, not at all. */
#define COPY_BYTES (2 * MiB)

/*
 * How often a new VM was created; and of the last one:
 * @rebuilding: the reset is not over
 * @devices_stopped: until it is
 * @failed: something has failed, so the guest must not run
 * @incomplete: there is no VM, or one that lacks something
 * @vcpus_lost: vCPUs were being made; QEMU cannot do that again if it fails
 */
static unsigned rebuilds;
static bool rebuilding;
static bool devices_stopped;
static bool failed;
static bool incomplete;
static bool vcpus_lost;

/* Of a step of a launch; looked at by guest_memfd_launch_ok(). */
static Error *launch_error;

unsigned guest_memfd_rebuilds(void)
{
    return qatomic_read(&rebuilds);
}

bool guest_memfd_rebuild_failed(void)
{
    return failed;
}

bool guest_memfd_may_launch(void)
{
    return !failed && (rebuilds || runstate_is_running());
}

int guest_memfd_rebuild_notify(int (*notify)(Error **errp), Error **errp)
{
    return incomplete ? 0 : notify(errp);
}

RunState guest_memfd_state_after_reset(void)
{
    return failed ? runstate_get() : RUN_STATE_PRELAUNCH;
}

int guest_memfd_rebuild_vcpus(int (*rebind)(Error **errp), Error **errp)
{
    ERRP_GUARD();
    int ret;

    vcpus_lost = true;
    ret = rebind(errp);
    if (*errp) {
        error_report_err(error_copy(*errp));
    }
    return ret;
}

bool guest_memfd_rebuild_region_failed(bool create)
{
    failed |= rebuilding && create;
    return rebuilding;
}

static void no_work(CPUState *cpu, run_on_cpu_data data)
{
}

/*
 * The vCPUs were paused by signals, and the signals' handler uses what is
 * unmapped when vCPUs are created again.  QEMU waits for the threads when it
 * asks vCPUs for their state, but it does not ask those of such guests.
 */
static void wait_for_vcpu_threads(void)
{
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        run_on_cpu(cpu, no_work, RUN_ON_CPU_NULL);
    }
}

int guest_memfd_rebuild(int (*rebuild)(MachineState *ms), MachineState *ms)
{
    bool protected = !cpus_are_resettable();
    int ret;

    if (vcpus_lost) {
        error_report("the guest cannot be reset any more, because a reset has "
                     "failed when its vCPUs were created again; quit QEMU");
        return -EIO;
    }
    devices_stopped = runstate_is_running();
    if (devices_stopped) {
        vm_state_notify(false, RUN_STATE_PAUSED);
    }
    bdrv_drain_all();
    wait_for_vcpu_threads();
    qatomic_inc(&rebuilds);
    failed = false;
    rebuilding = true;
    ret = rebuild(ms);
    if (failed && !ret) {
        ret = -EIO;
    }
    trace_guest_memfd_rebuild(rebuilds, ret);
    failed = ret < 0;
    incomplete = failed;
    rebuilding = !failed;
    vcpus_lost &= failed;
    if (failed && protected) {
        /*
         * QEMU takes a VM that was not launched for one whose vCPUs it can
         * reset.  But the next reset has to make a new VM.
         */
        kvm_mark_guest_state_protected();
    }
    return ret;
}

void guest_memfd_reset_end(void)
{
    rebuilding = false;
    if (failed) {
        /* As in guest_memfd_rebuild() */
        if (current_machine->cgs) {
            kvm_mark_guest_state_protected();
        }
        vm_stop(RUN_STATE_INTERNAL_ERROR);
    } else if (devices_stopped) {
        vm_state_notify(true, RUN_STATE_RUNNING);
    }
    devices_stopped = false;
}

void guest_memfd_launch_failed(Error *err)
{
    error_report_err(err);
    if (!rebuilds) {
        exit(EXIT_FAILURE);
    }
    failed = true;
}

bool guest_memfd_relaunch_failed(int ret)
{
    if (!ret || !rebuilds) {
        return false;
    }
    failed = true;
    return true;
}

Error **guest_memfd_launch_errp(void)
{
    if (!rebuilds) {
        return &error_fatal;
    }
    return launch_error ? NULL : &launch_error;
}

bool guest_memfd_launch_ok(void)
{
    if (launch_error) {
        guest_memfd_launch_failed(g_steal_pointer(&launch_error));
    }
    return !failed;
}

/* NULL if the block is not the memory of a backend */
static HostMemoryBackend *backend_of(const GuestMemfd *gmem)
{
    Object *owner = memory_region_owner(gmem->rb->mr);

    return owner ? (HostMemoryBackend *)
                   object_dynamic_cast(owner, TYPE_MEMORY_BACKEND) : NULL;
}

/*
 * The NUMA policy of a backend, as QEMU has set it when the backend was made.
 * It belongs to the file.
 */
static bool policy_set(const GuestMemfd *gmem, Error **errp)
{
#ifdef CONFIG_NUMA
    HostMemoryBackend *backend = backend_of(gmem);
    int mode = backend ? backend->policy : HOST_MEM_POLICY_DEFAULT;

    if (mode == HOST_MEM_POLICY_DEFAULT) {
        return true;
    }
#ifdef HAVE_NUMA_HAS_PREFERRED_MANY
    if (mode == MPOL_PREFERRED && numa_has_preferred_many() > 0) {
        mode = MPOL_PREFERRED_MANY;
    }
#endif
    /* The kernel ignores the last of so many bits. */
    if (mbind(gmem->host, gmem->size, mode, backend->host_nodes,
              find_last_bit(backend->host_nodes, MAX_NODES) + 2, 0)) {
        error_setg_errno(errp, errno, "cannot bind it to its NUMA nodes");
        return false;
    }
#endif
    return true;
}

/* Preallocate what the user wants preallocated. */
static bool prealloc(const GuestMemfd *gmem, Error **errp)
{
    HostMemoryBackend *backend = backend_of(gmem);

    return !backend || !backend->prealloc ||
           guest_memfd_prealloc_mem(gmem->rb->fd, gmem->host, gmem->size,
                                    backend->prealloc_threads,
                                    backend->prealloc_context, false, errp);
}

/* Copy what is there to @fd. */
static bool copy_contents(const GuestMemfd *gmem, int fd, Error **errp)
{
    uint64_t offset, size;

    for (offset = 0; offset < gmem->size; offset += size) {
        uint64_t allocated = COPY_BYTES;
        void *to;

        size = MIN(COPY_BYTES, gmem->size - offset);
        if (guest_memfd_allocated(gmem, offset, size, &allocated) &&
            !allocated) {
            continue;
        }
        to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
        if (to == MAP_FAILED) {
            error_setg_errno(errp, errno, "cannot map the new guest_memfd to "
                             "copy contents");
            return false;
        }
        memcpy(to, gmem->host + offset, size);
        munmap(to, size);
    }
    return true;
}

/* Give @gmem a file of the new VM.  Returns false with the old one on error. */
static bool replace_file(GuestMemfd *gmem, Error **errp)
{
    RAMBlock *rb = gmem->rb;
    int fd = kvm_guest_memfd_create(rb->max_length, errp);
    int old_fd = rb->fd, old_kvm_fd = rb->guest_memfd, kvm_fd = -1;
    struct stat st;

    if (fd < 0) {
        return false;
    }
    if (old_kvm_fd >= 0) {
        kvm_fd = qemu_dup(fd);
    }
    if ((old_kvm_fd >= 0 && kvm_fd < 0) || fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "cannot use the new guest_memfd");
        goto fail;
    }
    if (!guest_memfd_can_be_private(gmem) && !copy_contents(gmem, fd, errp)) {
        goto fail;
    }

    rb->fd = fd;
    rb->guest_memfd = kvm_fd;
    if (!guest_memfd_access_remap(gmem)) {
        error_setg_errno(errp, errno, "cannot map the new guest_memfd");
        rb->fd = old_fd;
        rb->guest_memfd = old_kvm_fd;
        goto fail;
    }
    gmem->inode = st.st_ino;
    close(old_fd);
    if (old_kvm_fd >= 0) {
        close(old_kvm_fd);
    }
    return true;

fail:
    close(fd);
    if (kvm_fd >= 0) {
        close(kvm_fd);
    }
    return false;
}

static bool rebind_block(GuestMemfd *gmem, Error **errp)
{
    ERRP_GUARD();
    const char *name = memory_region_name(gmem->rb->mr);
    uint64_t old_inode = gmem->inode;

    /* Memory that can be private is mapped by discard listeners only. */
    if (!guest_memfd_can_be_private(gmem) && ram_block_discard_is_disabled()) {
        error_setg(errp, "memory '%s' cannot become that of a new VM, because "
                   "a device pins all of it; remove the device, or "
                   "x-change-vmfd-on-reset=on", name);
        return false;
    }
    guest_memfd_notify_discard_all(gmem);
    guest_memfd_state_hide(gmem);
    if (!replace_file(gmem, errp) || !policy_set(gmem, errp) ||
        !prealloc(gmem, errp)) {
        error_prepend(errp, "memory '%s' cannot become that of a new VM: ",
                      name);
        return false;
    }
    guest_memfd_state_reset(gmem);
    gmem->bound = gmem->plain = gmem->replaced = 0;
    trace_guest_memfd_rebind(name, old_inode, gmem->inode);
    return true;
}

/* QEMU forgets to reset what it knows of memory that is kept separate. */
static int reset_separate(RAMBlock *rb, void *opaque)
{
    const bool *private = opaque;

    return rb->attributes
           ? ram_block_attributes_state_change(rb->attributes, 0,
                                               memory_region_size(rb->mr),
                                               *private)
           : 0;
}

static int rebind_separate(void)
{
    bool private = !current_machine->cgs->starts_shared;

    return qemu_ram_foreach_block(reset_separate, &private);
}

static int rebind_all(Error **errp)
{
    GuestMemfd *gmem;

    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        if (!rebind_block(gmem, errp)) {
            return -EIO;
        }
    }
    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        int ret = guest_memfd_notify_populate_all(gmem);

        if (ret) {
            error_setg_errno(errp, -ret, "a device cannot map memory '%s' of "
                             "the new VM", memory_region_name(gmem->rb->mr));
            return ret;
        }
    }
    return 0;
}

int guest_memfd_rebind(void)
{
    Error *err = NULL;
    int ret;

    guest_memfd_launch_reset();
    if (!guest_memfd_in_place() && current_machine->cgs) {
        return rebind_separate();
    }
    ret = rebind_all(&err);
    if (ret) {
        error_report_err(err);
    }
    return ret;
}
