/*
 * RAM blocks that are a KVM guest_memfd: creation, lookup, allocation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/syscall.h>
#include "migration/blocker.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "system/ramlist.h"
#include "hw/core/boards.h"
#include "qapi/error.h"
#include "qemu/rcu_queue.h"
#include "qemu/units.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/trace.h"

/* A thread is worth its start from this many bytes on. */
#define PREALLOC_BYTES_PER_THREAD (128 * MiB)

/* The same number on every architecture but alpha; new in Linux 6.5. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

static GuestMemfds guest_memfds = QTAILQ_HEAD_INITIALIZER(guest_memfds);

const GuestMemfds *guest_memfd_list(void)
{
    return &guest_memfds;
}

GuestMemfd *guest_memfd_from_host(const void *host)
{
    GuestMemfd *gmem;

    RCU_READ_LOCK_GUARD();
    QTAILQ_FOREACH_RCU(gmem, &guest_memfds, next) {
        uintptr_t start = (uintptr_t)gmem->host;

        if ((uintptr_t)host - start < gmem->size) {
            return gmem;
        }
    }
    return NULL;
}

void guest_memfd_free(GuestMemfd *gmem)
{
    migrate_del_blocker(&gmem->blocker);
    g_free(gmem);
}

static void guest_memfd_reclaim(GuestMemfd *gmem)
{
    guest_memfd_access_destroy(gmem);
    guest_memfd_state_destroy(gmem);
    g_free(gmem);
}

void guest_memfd_remove(GuestMemfd *gmem)
{
    trace_guest_memfd_remove(gmem->inode);
    assert(QTAILQ_EMPTY(&gmem->slots));
    QTAILQ_REMOVE_RCU(&guest_memfds, gmem, next);
    migrate_del_blocker(&gmem->blocker);
    call_rcu(gmem, guest_memfd_reclaim, rcu);
}

/*
 * The RAM block is about to go: no memory region uses it any more, so its
 * slots are gone too.  Mapping and file follow after an RCU grace period.
 */
static void guest_memfd_ram_block_removed(RAMBlockNotifier *n, void *host,
                                          size_t size, size_t max_size)
{
    GuestMemfd *gmem = guest_memfd_from_host(host);

    if (gmem) {
        guest_memfd_ram_block_release(gmem->rb);
        guest_memfd_remove(gmem);
    }
}

static void guest_memfd_watch_ram_blocks(void)
{
    static RAMBlockNotifier notifier = {
        .ram_block_removed = guest_memfd_ram_block_removed,
    };
    static bool watching;

    if (!watching) {
        ram_block_notifier_add(&notifier);
        watching = true;
    }
}

/*
 * Private pages cannot be read, so they cannot be migrated.  And a guest_memfd
 * belongs to one VM, so another process cannot make it its guest's memory: the
 * block looks like shared memory with a file, which the modes of CPR would
 * hand over and not copy.  Returns 0 or -errno.
 */
static int block_migration(GuestMemfd *gmem, const char *name,
                           bool can_be_private, Error **errp)
{
    if (can_be_private) {
        error_setg(&gmem->blocker, "Memory '%s' can be private to the guest, "
                   "and private memory cannot be migrated", name);
        return migrate_add_blocker(&gmem->blocker, errp);
    }
    error_setg(&gmem->blocker, "Memory '%s' is a guest_memfd, which cannot be "
               "handed to another QEMU process", name);
    return migrate_add_blocker_modes(&gmem->blocker,
                                     BIT(MIG_MODE_CPR_TRANSFER) |
                                     BIT(MIG_MODE_CPR_EXEC), errp);
}

GuestMemfd *guest_memfd_new(const char *name, uint64_t size,
                            bool can_be_private, int *fd, Error **errp)
{
    GuestMemfd *gmem = g_new0(GuestMemfd, 1);
    struct stat st;

    /* A migration that is running refuses the block before it has a file. */
    if (block_migration(gmem, name, can_be_private, errp) < 0) {
        goto free;
    }

    *fd = kvm_guest_memfd_create(size, errp);
    if (*fd < 0) {
        goto free;
    }
    if (fstat(*fd, &st) < 0) {
        error_setg_errno(errp, errno, "cannot stat the guest_memfd");
        close(*fd);
        goto free;
    }
    gmem->inode = st.st_ino;
    QTAILQ_INIT(&gmem->slots);
    return gmem;

free:
    guest_memfd_free(gmem);
    return NULL;
}

/* As QEMU decides it for RAM of the machine, and of a backend. */
static bool is_dumped(RAMBlock *rb)
{
    Object *owner = memory_region_owner(rb->mr);

    owner = owner ? object_dynamic_cast(owner, TYPE_MEMORY_BACKEND) : NULL;
    return owner ? MEMORY_BACKEND(owner)->dump
                 : machine_dump_guest_core(current_machine);
}

void guest_memfd_add(GuestMemfd *gmem, RAMBlock *rb, bool can_be_private)
{
    gmem->rb = rb;
    gmem->host = rb->host;
    gmem->size = rb->max_length;
    gmem->dump = is_dumped(rb);
    guest_memfd_state_init(gmem, can_be_private);
    if (can_be_private) {
        guest_memfd_access_init(gmem);
    }
    rb->gmem = gmem;
    guest_memfd_watch_ram_blocks();
    trace_guest_memfd_init_ram(memory_region_name(rb->mr), rb->max_length,
                               gmem->inode, rb->host);
    QTAILQ_INSERT_TAIL_RCU(&guest_memfds, gmem, next);
}

bool guest_memfd_init_ram(MemoryRegion *mr, Object *owner, const char *name,
                          uint64_t size, uint32_t ram_flags, Error **errp)
{
    GuestMemfd *gmem;
    int fd;

    if (guest_memfd_in_place()) {
        /* See guest_memfd_ram_block_init(). */
        return memory_region_init_ram_flags_nomigrate(mr, owner, name, size,
                                                      RAM_SHARED |
                                                      RAM_GUEST_MEMFD |
                                                      ram_flags, errp);
    }

    gmem = guest_memfd_new(name, size, false, &fd, errp);
    if (!gmem) {
        return false;
    }
    if (!memory_region_init_ram_from_fd(mr, owner, name, size,
                                        RAM_SHARED | ram_flags, fd, 0, errp)) {
        close(fd);
        guest_memfd_free(gmem);
        return false;
    }
    guest_memfd_add(gmem, mr->ram_block, false);
    return true;
}

int guest_memfd_ram_file(RAMBlock *rb)
{
    return rb && !guest_memfd_from_host(qemu_ram_get_host_addr(rb))
           ? qemu_ram_get_fd(rb) : -1;
}

typedef struct PreallocSlice {
    QemuThread thread;
    int fd;
    uint64_t offset;
    uint64_t size;
    int error;
} PreallocSlice;

static void *prealloc_slice(void *opaque)
{
    PreallocSlice *slice = opaque;
    int ret;

    /* A signal ends the call half-way; pages that are there cost little. */
    do {
        ret = fallocate(slice->fd, FALLOC_FL_KEEP_SIZE, slice->offset,
                        slice->size);
    } while (ret < 0 && errno == EINTR);

    slice->error = ret < 0 ? errno : 0;
    return NULL;
}

bool guest_memfd_prealloc_mem(int fd, char *area, size_t sz, int max_threads,
                              ThreadContext *tc, bool async, Error **errp)
{
    GuestMemfd *gmem = guest_memfd_from_host(area);
    g_autofree PreallocSlice *slices = NULL;
    uint64_t offset, slice_size;
    int i, count, error = 0;

    if (!gmem) {
        return qemu_prealloc_mem(fd, area, sz, max_threads, tc, async, errp);
    }

    offset = area - (char *)gmem->rb->host;
    count = MAX(1, MIN(max_threads, sz / PREALLOC_BYTES_PER_THREAD));
    slice_size = ROUND_UP(DIV_ROUND_UP(sz, count), qemu_real_host_page_size());
    slices = g_new0(PreallocSlice, count);
    trace_guest_memfd_prealloc(gmem->inode, offset, sz, count);

    for (i = 0; i < count; i++) {
        PreallocSlice *slice = &slices[i];

        slice->fd = gmem->rb->fd;
        slice->offset = offset + i * slice_size;
        slice->size = MIN(slice_size, sz - i * slice_size);
        if (tc) {
            thread_context_create_thread(tc, &slice->thread, "gmem-prealloc",
                                         prealloc_slice, slice,
                                         QEMU_THREAD_JOINABLE);
        } else if (count > 1) {
            qemu_thread_create(&slice->thread, "gmem-prealloc", prealloc_slice,
                               slice, QEMU_THREAD_JOINABLE);
        } else {
            prealloc_slice(slice);
        }
    }
    for (i = 0; i < count; i++) {
        if (tc || count > 1) {
            qemu_thread_join(&slices[i].thread);
        }
        error = error ?: slices[i].error;
    }

    if (error) {
        error_setg_errno(errp, error,
                         "cannot preallocate 0x%zx bytes of guest_memfd '%s'",
                         sz, memory_region_name(gmem->rb->mr));
        return false;
    }
    return true;
}

bool guest_memfd_allocated(const GuestMemfd *gmem, uint64_t offset,
                           uint64_t size, uint64_t *bytes)
{
    /* Layout: cachestat(2), counts in pages. */
    struct {
        uint64_t offset;
        uint64_t size;
    } range = { offset, size };
    struct {
        uint64_t cache;
        uint64_t dirty;
        uint64_t writeback;
        uint64_t evicted;
        uint64_t recently_evicted;
    } pages;

    if (syscall(SYS_cachestat, gmem->rb->fd, &range, &pages, 0) < 0) {
        return false;
    }
    *bytes = pages.cache * qemu_real_host_page_size();
    return true;
}
