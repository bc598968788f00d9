/*
 * RAM blocks that are a KVM guest_memfd: what their files share
 *
 * All functions are called with the BQL held unless they say otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_INTERNAL_H
#define SYSTEM_GUEST_MEMFD_INTERNAL_H

#include "qapi/qapi-types-guest-memfd.h"
#include "qemu/queue.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "system/guest-memfd.h"
#include "system/memory.h"
#include "system/ramblock.h"

struct GuestMemfdAccess;
struct RamDiscardSource;

/**
 * GuestMemfdSlot: one KVM memslot on a GuestMemfd
 * @as_id: KVM's address space, 0 or 1 (SMM)
 * @slot: KVM's number of the slot in that address space
 * @flags: KVM_MEM_READONLY and KVM_MEM_LOG_DIRTY_PAGES as QEMU asked for them
 * @gpa: guest physical address, in bytes
 * @size: bytes
 * @offset: of the slot's first byte in the file
 * @bound: the guest's faults are served from the file; else from its mapping
 * @reason: why not, if not @bound
 *
 * QEMU's KVMSlot has the first members, too, but in an array that grows, and so
 * moves, and with flags that have changed before KVM has to change the slot.
 */
typedef struct GuestMemfdSlot {
    unsigned as_id;
    unsigned slot;
    uint32_t flags;
    uint64_t gpa;
    uint64_t size;
    uint64_t offset;
    bool bound;
    GuestMemfdPlainReason reason;
    QTAILQ_ENTRY(GuestMemfdSlot) next;
} GuestMemfdSlot;

typedef QTAILQ_HEAD(GuestMemfdSlots, GuestMemfdSlot) GuestMemfdSlots;

/**
 * GuestMemfdState: which pages of a block are shared
 * @lock: the block's conversion lock, held while a chunk is converted; taken
 *        after the BQL and before the lock of guest-memfd-access.c
 * @shared: a bit a host page, set while the page is shared and nobody is about
 *          to change that.  NULL if no page of the block can be private.
 *          Changed under @lock and by atomic operations, so it can be looked
 *          at without a lock
 * @pages: how many host pages the block has
 * @launching: all pages will be private when the launch is finished, so
 *             discard listeners are not notified; under @lock
 * @to_private, @to_shared: pages converted so far; under @lock
 * @busy: how often the kernel has answered EAGAIN so far; under @lock
 * @busy_page: the page that was busy last; under @lock
 * @warned: a failed conversion that could not be put back was reported; a
 *          guest may be able to cause more of them; under @lock
 */
typedef struct GuestMemfdState {
    QemuMutex lock;
    unsigned long *shared;
    uint64_t pages;
    bool launching;
    uint64_t to_private;
    uint64_t to_shared;
    uint64_t busy;
    uint64_t busy_page;
    bool warned;
} GuestMemfdState;

/**
 * GuestMemfd: a RAM block that is a guest_memfd
 * @rb: the block; its fd is the guest_memfd and belongs to it
 * @host, @size: its mapping; unlike @rb, valid in any RCU critical section
 * @inode: of the file, as in /proc/PID/maps
 * @state: shared and private pages
 * @access: of QEMU to pages that can be private; NULL if there are none
 * @discard_source: notifies discard listeners; NULL if no page can be private
 * @slots: its memslots, by address space and address
 * @bound: slots bound so far
 * @plain: slots created plain so far
 * @replaced: slots replaced under a running VM so far
 * @dump: it shall be part of QEMU's core dumps
 * @blocker: of migration, all of it or CPR only
 *
 * Lives as long as its RAM block and a grace period of RCU, so a holder of a
 * reference to the memory region may keep a pointer, and look at @rb.
 */
struct GuestMemfd {
    struct rcu_head rcu;
    RAMBlock *rb;
    void *host;
    uint64_t size;
    uint64_t inode;
    GuestMemfdState state;
    struct GuestMemfdAccess *access;
    struct RamDiscardSource *discard_source;
    GuestMemfdSlots slots;
    uint64_t bound;
    uint64_t plain;
    uint64_t replaced;
    bool dump;
    Error *blocker;
    QTAILQ_ENTRY(GuestMemfd) next;
};

typedef QTAILQ_HEAD(GuestMemfds, GuestMemfd) GuestMemfds;

/* system/guest-memfd.c */

/** guest_memfd_list: all blocks of this kind, in the order of creation. */
const GuestMemfds *guest_memfd_list(void);

/**
 * guest_memfd_from_host: the block that @host points into
 * @host: any address; need not be RAM
 *
 * Needs no lock; but the block must not go before the caller is done with it.
 * Returns: the block, or NULL.
 */
GuestMemfd *guest_memfd_from_host(const void *host);

/**
 * guest_memfd_new: a file, and what goes with it, for a block to be
 * @name: of the memory
 * @size: bytes, a multiple of the host's page size
 * @can_be_private: its pages can be converted
 * @fd: set to the file, all shared; the caller owns it
 *
 * Returns: to be given to guest_memfd_add() or guest_memfd_free(); or NULL
 * with @errp set.
 */
GuestMemfd *guest_memfd_new(const char *name, uint64_t size,
                            bool can_be_private, int *fd, Error **errp);

/** guest_memfd_add: @rb is that block, and mapped; enter it into the list. */
void guest_memfd_add(GuestMemfd *gmem, RAMBlock *rb, bool can_be_private);

/** guest_memfd_free: the block was not added, and is not needed. */
void guest_memfd_free(GuestMemfd *gmem);

/** guest_memfd_remove: the opposite of guest_memfd_add(). */
void guest_memfd_remove(GuestMemfd *gmem);

/** guest_memfd_can_be_private: can pages of the block be private? */
static inline bool guest_memfd_can_be_private(const GuestMemfd *gmem)
{
    return gmem->state.shared;
}

/**
 * guest_memfd_allocated: bytes of a range that have a page now
 * @offset, @size: bytes in the block, multiples of the host's page size
 *
 * Asks cachestat(2) (Linux 6.5), which alone counts pages of a guest_memfd.
 * Returns: false where the kernel has no such call.
 */
bool guest_memfd_allocated(const GuestMemfd *gmem, uint64_t offset,
                           uint64_t size, uint64_t *bytes);

/* system/guest-memfd-state.c */

/**
 * guest_memfd_state_init: all pages of a new block are shared
 * @gmem: its rb is set
 * @can_be_private: pages can be converted
 */
void guest_memfd_state_init(GuestMemfd *gmem, bool can_be_private);

/** guest_memfd_state_destroy: no page of it is converted any more. */
void guest_memfd_state_destroy(GuestMemfd *gmem);

/**
 * guest_memfd_state_hide: nobody may access the block until it is reset
 *
 * No vCPU runs, and no listener has mapped any of it.
 */
void guest_memfd_state_hide(GuestMemfd *gmem);

/**
 * guest_memfd_state_reset: the block has a new file, all of it shared
 *
 * Counters start again.  No vCPU runs.
 */
void guest_memfd_state_reset(GuestMemfd *gmem);

/**
 * guest_memfd_state_launched: notify listeners of the block from now on
 *
 * All of it is private.
 */
void guest_memfd_state_launched(GuestMemfd *gmem);

/**
 * guest_memfd_state_set: set or clear bits of pages in state.shared
 * @first, @end: pages
 *
 * state.lock is held, unless no vCPU runs.  To be used by guest_memfd_show()
 * and guest_memfd_hide() only.
 */
void guest_memfd_state_set(GuestMemfd *gmem, uint64_t first, uint64_t end,
                           bool shared);

/**
 * guest_memfd_next_page: find a page that is shared, or one that is not
 * @first, @end: pages to look at, from @first up to but not including @end
 *
 * Needs no lock; state.lock keeps what it finds from changing.
 * Returns: the first such page, or @end.
 */
uint64_t guest_memfd_next_page(const GuestMemfd *gmem, uint64_t first,
                               uint64_t end, bool shared);

/**
 * guest_memfd_any_private: is one of these pages private, or about to be?
 * @offset, @size: bytes in the block; need not be aligned
 *
 * Needs no lock.
 */
bool guest_memfd_any_private(const GuestMemfd *gmem, uint64_t offset,
                             uint64_t size);

/**
 * guest_memfd_private_pages: count private pages
 * @runs: set to how many runs they form
 *
 * Needs no lock.  Returns: host pages.
 */
uint64_t guest_memfd_private_pages(const GuestMemfd *gmem, uint64_t *runs);

/* system/guest-memfd-convert.c */

/* A chunk has so many bytes at most, unless no vCPU runs. */
#define GUEST_MEMFD_CHUNK (64 * MiB)

/**
 * GuestMemfdRetry: how long a conversion may take
 * @timeout: microseconds without progress, after which it fails with EAGAIN
 * @interrupted: asked between chunks and while a page is busy; true ends the
 *               conversion with EINTR.  NULL: never
 */
typedef struct GuestMemfdRetry {
    int64_t timeout;
    bool (*interrupted)(void);
} GuestMemfdRetry;

/** guest_memfd_retry_ends: has the caller to do something else?  No lock. */
static inline bool guest_memfd_retry_ends(const GuestMemfdRetry *retry)
{
    return retry && retry->interrupted && retry->interrupted();
}

/**
 * guest_memfd_convert: make pages private or shared
 * @offset, @size: bytes in the block, multiples of the host's page size
 * @retry: NULL to take the range as one chunk and to wait a second for a page
 *         that is busy: for a launch or a reset, where no vCPU runs
 * @done: set to the bytes, from @offset on, that are now as requested
 *
 * Converts chunk by chunk.  A chunk is converted as a whole or not at all; an
 * error does not undo earlier chunks.  Pages that are in that state already
 * are left alone.  Discard listeners are notified before pages become private
 * and after they have become shared.
 *
 * Needs no lock.  Takes the BQL for a chunk at a time, and only if the block
 * has discard listeners.  The block must not go meanwhile.  Contents are the
 * kernel's affair: those of SEV-SNP and TDX guests are lost, also if a chunk
 * is put back.
 *
 * Returns: 0; -EAGAIN if a page stays busy; -EINTR if @retry was interrupted;
 * -EINVAL if the range is none, or cannot be private; -errno of the kernel or
 * of a listener.
 */
int guest_memfd_convert(GuestMemfd *gmem, uint64_t offset, uint64_t size,
                        bool to_private, const GuestMemfdRetry *retry,
                        uint64_t *done);

/** guest_memfd_convert_all: the same for all of a block, as one chunk */
int guest_memfd_convert_all(GuestMemfd *gmem, bool to_private);

/**
 * guest_memfd_conversions: counts conversions that changed a page, of any
 * block; wraps around.  Needs no lock.
 */
unsigned guest_memfd_conversions(void);

/** guest_memfd_converted: pages were converted.  Needs no lock. */
void guest_memfd_converted(void);

/* system/guest-memfd-separate.c: private memory beside the shared one */

/**
 * guest_memfd_separate_convert: make pages private or shared
 * @rb: a block with private memory beside its own
 * @gpa, @offset, @size: bytes, multiples of the host's page size; the range
 *                       in the guest's address space and in the block
 * @retry, @done: as for guest_memfd_convert()
 *
 * Needs no lock; takes the BQL for a chunk at a time.
 * Returns: 0, -EINTR, or -errno of QEMU's conversion.
 */
int guest_memfd_separate_convert(RAMBlock *rb, hwaddr gpa, uint64_t offset,
                                 uint64_t size, bool to_private,
                                 const GuestMemfdRetry *retry, uint64_t *done);

/**
 * guest_memfd_separate_differs: is a page not in that state?
 * @offset, @size: bytes in @rb, multiples of the host's page size
 *
 * Takes the BQL.
 */
bool guest_memfd_separate_differs(RAMBlock *rb, uint64_t offset, uint64_t size,
                                  bool private);

/* system/guest-memfd-discard.c: discard listeners of a block */

/**
 * guest_memfd_discard_init: make a block a source of its discard manager
 * @gmem: its rb is set; pages of it can be private
 *
 * Returns: false with @errp set on error.
 */
bool guest_memfd_discard_init(GuestMemfd *gmem, Error **errp);

/**
 * guest_memfd_discard_end: take that back
 *
 * The block's memory region is still there.  Does nothing if it is no source.
 */
void guest_memfd_discard_end(GuestMemfd *gmem);

/**
 * guest_memfd_has_listeners: does anybody have to be notified?
 *
 * Needs no lock.  "No" remains true while state.lock is held.
 */
bool guest_memfd_has_listeners(const GuestMemfd *gmem);

/**
 * guest_memfd_notify_populate: listeners may map these pages now
 * @offset, @size: bytes in the block, multiples of the host's page size
 *
 * Returns: 0; or -errno of a listener, and then no listener has them.
 */
int guest_memfd_notify_populate(GuestMemfd *gmem, uint64_t offset,
                                uint64_t size);

/** guest_memfd_notify_discard: listeners have to unmap these pages. */
void guest_memfd_notify_discard(GuestMemfd *gmem, uint64_t offset,
                                uint64_t size);

/** guest_memfd_notify_discard_all: listeners have to unmap the block. */
void guest_memfd_notify_discard_all(GuestMemfd *gmem);

/**
 * guest_memfd_notify_populate_all: listeners may map all that is shared
 *
 * They have mapped nothing of the block.  Returns: 0; or -errno of a listener.
 */
int guest_memfd_notify_populate_all(GuestMemfd *gmem);

/* system/guest-memfd-access.c; see also guest-memfd-access.h */

/** guest_memfd_access_init: pages of the block can be private. */
void guest_memfd_access_init(GuestMemfd *gmem);

/** guest_memfd_access_destroy: the block is gone, with its mapping. */
void guest_memfd_access_destroy(GuestMemfd *gmem);

/**
 * guest_memfd_access_remap: map the block's file in the place of all that is
 * mapped there now
 *
 * No page is covered any more; counters start again.
 * Returns: false with errno set on error.
 */
bool guest_memfd_access_remap(GuestMemfd *gmem);

/**
 * guest_memfd_show: let devices access pages
 * @first, @end: pages, which the kernel has as shared
 *
 * state.lock is held.  Sets their bits in state.shared.
 * Returns: 0; or -errno if the file cannot be mapped there again, and then no
 * bit is set.
 */
int guest_memfd_show(GuestMemfd *gmem, uint64_t first, uint64_t end);

/**
 * guest_memfd_hide: no device may access these pages any more
 * @first, @end: pages
 *
 * state.lock is held.  Clears their bits in state.shared.
 */
void guest_memfd_hide(GuestMemfd *gmem, uint64_t first, uint64_t end);

/**
 * GuestMemfdAccessCounters: what happened to private pages of a block
 * @denied: accesses of devices that were refused
 * @touched: pages that were covered because a device has touched them
 */
typedef struct GuestMemfdAccessCounters {
    uint64_t denied;
    uint64_t touched;
} GuestMemfdAccessCounters;

/** guest_memfd_access_counters: needs no lock. */
GuestMemfdAccessCounters guest_memfd_access_counters(const GuestMemfd *gmem);

/** guest_memfd_is_covered: is dummy RAM mapped over a page?  No lock. */
bool guest_memfd_is_covered(const GuestMemfd *gmem, uint64_t page);

/* system/guest-memfd-cgs.c */

/**
 * guest_memfd_cgs_check_backend: can a guest_memfd be this machine's RAM?
 * @type: of the backend, for the error
 */
bool guest_memfd_cgs_check_backend(const char *type, Error **errp);

/**
 * guest_memfd_is_launching: will memory that is made now be private before the
 * guest runs?
 *
 * Of a guest with private memory.
 */
bool guest_memfd_is_launching(void);

#endif
