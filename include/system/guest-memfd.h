/*
 * RAM blocks that are a KVM guest_memfd
 *
 * A RAM block of this kind has one file, a guest_memfd, and QEMU's mapping of
 * it; the guest is served from the same pages.  All functions here are called
 * with the BQL held unless they say otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_H
#define SYSTEM_GUEST_MEMFD_H

#include "qapi/qapi-types-guest-memfd.h"
#include "qapi/qapi-types-run-state.h"
#include "qemu/queue.h"
#include "qemu/rcu.h"
#include "qemu/thread-context.h"
#include "system/hostmem.h"

#define TYPE_MEMORY_BACKEND_GUEST_MEMFD "memory-backend-guest-memfd"

struct KVMMemoryListener;
struct KVMSlot;
struct RamDiscardSource;
typedef struct GuestMemfd GuestMemfd;

/**
 * GuestMemfdCaps: what the host's KVM can do for this VM
 * @generation: see the QAPI type
 * @flags: the bits KVM_CREATE_GUEST_MEMFD accepts (KVM_CAP_GUEST_MEMFD_FLAGS)
 * @numa_policy: mbind() on a mapping is kept in the file (Linux 6.19)
 * @missing: what stands in the way of a mappable guest_memfd, as a clause for
 *           an error message; NULL if nothing does.  Static.
 */
typedef struct GuestMemfdCaps {
    GuestMemfdGeneration generation;
    uint64_t flags;
    bool numa_policy;
    const char *missing;
} GuestMemfdCaps;

/**
 * GuestMemfdSlot: one KVM memslot on a GuestMemfd
 * @as_id: KVM's address space, 0 or 1 (SMM)
 * @slot: KVM's number of the slot in that address space
 * @flags: KVM_MEM_READONLY and KVM_MEM_LOG_DIRTY_PAGES as QEMU asked for them
 * @gpa: guest physical address, in bytes
 * @size: bytes
 * @offset: of the slot's first byte in the file
 * @host: where that byte is mapped
 * @bound: the guest's faults are served from the file; else from @host
 * @reason: why not, if not @bound
 */
typedef struct GuestMemfdSlot {
    unsigned as_id;
    unsigned slot;
    uint32_t flags;
    uint64_t gpa;
    uint64_t size;
    uint64_t offset;
    void *host;
    bool bound;
    GuestMemfdPlainReason reason;
    QTAILQ_ENTRY(GuestMemfdSlot) next;
} GuestMemfdSlot;

typedef QTAILQ_HEAD(GuestMemfdSlots, GuestMemfdSlot) GuestMemfdSlots;

/**
 * GuestMemfdRange: a part of a block
 * @gmem: the block
 * @offset, @size: bytes in it, multiples of the host's page size
 */
typedef struct GuestMemfdRange {
    GuestMemfd *gmem;
    uint64_t offset;
    uint64_t size;
} GuestMemfdRange;

/**
 * GuestMemfdPatience: how long a conversion may take
 * @timeout: microseconds without progress, after which it fails
 * @interrupted: asked now and then; true ends the conversion.  NULL: never
 */
typedef struct GuestMemfdPatience {
    int64_t timeout;
    bool (*interrupted)(void);
} GuestMemfdPatience;

/* Pages of all blocks that may be covered; see guest-memfd-access.c. */
#define GUEST_MEMFD_COVERED 1024

/**
 * GuestMemfdState: which pages of a block are private
 * @lock: protects what is not said to have another; held for a short time only
 * @private: a bit a host page, from the block's first; NULL if the VM has no
 *           private memory
 * @pages: how many host pages there are
 * @private_pages: how many of them are private
 * @shown: a bit a page, which is set unless the page is hidden: private, or
 *         about to be.  Atomic, but changed under @lock, and set under
 *         @access_lock as well
 * @launching: it will all be private when the launch is finished, so until
 *             then listeners neither see nor hear of anything
 * @to_private, @to_shared: pages that were converted so far
 * @busy: answers of EAGAIN so far
 * @busy_page: the page that was busy last
 * @complained: somebody was told that a failed conversion was not undone; not
 *              again, because a guest may be able to bring that about
 * @denied: accesses that led to a hidden page; atomic
 * @access_lock: protects the rest; innermost
 * @covered: pages that a page of zeros is mapped over, @covered_pages of them
 * @touched: how often a page was covered so far
 * @last_touched: the last one
 * @told: as @touched was when the user was told; main loop only
 *
 * The kernel cannot be asked, so this is the truth about page state.  Only
 * guest-memfd-convert.c changes it.
 */
typedef struct GuestMemfdState {
    QemuMutex lock;
    unsigned long *private;
    uint64_t pages;
    uint64_t private_pages;
    unsigned long *shown;
    bool launching;
    uint64_t to_private;
    uint64_t to_shared;
    uint64_t busy;
    uint64_t busy_page;
    bool complained;
    uint64_t denied;
    QemuSpin access_lock;
    unsigned covered_pages;
    uint64_t covered[GUEST_MEMFD_COVERED];
    uint64_t touched;
    uint64_t last_touched;
    uint64_t told;
} GuestMemfdState;

/**
 * GuestMemfd: a RAM block that is a guest_memfd
 * @rb: the block; its fd is the guest_memfd and belongs to it
 * @host, @size: its mapping; unlike @rb, good in any RCU critical section
 * @inode: of the file, as in /proc/PID/maps
 * @state: shared and private pages
 * @discard_source: tells discard listeners of them; NULL if no page of the
 *                  block can be private
 * @slots: its memslots, by address space and address
 * @bound: slots bound so far
 * @plain: slots created plain so far
 * @replaced: slots replaced under a running VM so far
 * @can_be_private: its pages can be converted
 * @dump: it shall be part of QEMU's core dumps
 * @blocker: of migration, all of it or CPR only
 *
 * Lives as long as its RAM block and a grace period of RCU, so who holds a
 * reference to the memory region may keep a pointer, and look at @rb.
 */
struct GuestMemfd {
    struct rcu_head rcu;
    RAMBlock *rb;
    void *host;
    uint64_t size;
    uint64_t inode;
    GuestMemfdState state;
    struct RamDiscardSource *discard_source;
    GuestMemfdSlots slots;
    uint64_t bound;
    uint64_t plain;
    uint64_t replaced;
    bool can_be_private;
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
 * guest_memfd_init_ram: make @mr RAM that is a new guest_memfd, all shared
 * @mr: an uninitialised region
 * @owner: its owner
 * @name: its name
 * @size: bytes, a multiple of the host's page size, not 0
 * @ram_flags: RAM_NORESERVE or 0
 * @errp: says what is missing and what to do
 *
 * The file has close-on-exec set and is closed with the RAM block.
 * Returns: false, with nothing left behind, on error.
 */
bool guest_memfd_init_ram(MemoryRegion *mr, Object *owner, const char *name,
                          uint64_t size, uint32_t ram_flags, Error **errp);

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
void guest_memfd_add(GuestMemfd *gmem, RAMBlock *rb);

/** guest_memfd_free: it has come to nothing, before it was added. */
void guest_memfd_free(GuestMemfd *gmem);

/** guest_memfd_remove: the block goes, or has come to nothing after all. */
void guest_memfd_remove(GuestMemfd *gmem);

/**
 * guest_memfd_ram_block_init: make a new RAM block a guest_memfd, all shared
 * @rb: on its way into the list of RAM blocks
 *
 * Does so if it has to be RAM of a guest that is converted in place.  The
 * list of RAM blocks is locked.
 * Returns: false, with nothing left behind, on error.
 */
bool guest_memfd_ram_block_init(RAMBlock *rb, Error **errp);

/**
 * guest_memfd_ram_is_in_place: will a RAM block be a guest_memfd that is
 * converted in place?
 * @ram_flags: RAM_* that it is created with
 */
bool guest_memfd_ram_is_in_place(uint32_t ram_flags);

/**
 * guest_memfd_ram_block_release: undo what goes beyond a mapped file
 * @rb: a block that is about to go, while its memory region is still there
 */
void guest_memfd_ram_block_release(RAMBlock *rb);

/**
 * guest_memfd_ram_file: the file to give to others who map a block by file
 * @rb: the block, or NULL
 *
 * Returns: -1 if it has none, or if that is a guest_memfd: the kernel maps
 * those for nobody but KVM and QEMU.
 */
int guest_memfd_ram_file(RAMBlock *rb);

/**
 * guest_memfd_ram_is_separate: has @rb private memory beside its own?
 */
bool guest_memfd_ram_is_separate(const RAMBlock *rb);

/**
 * guest_memfd_starts_private: does KVM have to be told that memory which is
 * mapped to the guest now is private?
 * @mr: any kind of region
 */
bool guest_memfd_starts_private(MemoryRegion *mr);

/**
 * guest_memfd_patches_kernel: may QEMU write into the setup header of -kernel?
 *
 * Firmware of a guest that is private when it starts takes a kernel as it is
 * in its file, whose hash may be known to it.  Other firmware expects the
 * addresses of command line and initrd there.
 */
bool guest_memfd_patches_kernel(const MachineState *machine);

/**
 * guest_memfd_is_required: can RAM of @machine's guest be private?
 *
 * Firmware can only if machine_require_guest_memfd() says so, too.
 */
bool guest_memfd_is_required(const MachineState *machine);

/**
 * guest_memfd_prealloc_mem: qemu_prealloc_mem() that knows guest_memfd
 *
 * Takes the arguments of qemu_prealloc_mem().  For RAM that is a guest_memfd
 * the pages are allocated by fallocate(), in whatever state they are, without
 * touching or mapping them: one call, or one for each thread where the range
 * is large.  Returns when done, also with @async.
 */
bool guest_memfd_prealloc_mem(int fd, char *area, size_t sz, int max_threads,
                              ThreadContext *tc, bool async, Error **errp);

/**
 * guest_memfd_allocated: bytes of a range that have a page now
 * @offset, @size: bytes in the block, multiples of the host's page size
 *
 * Asks cachestat(2) (Linux 6.5), which alone counts pages of a guest_memfd.
 * Returns: false where the kernel has no such call.
 */
bool guest_memfd_allocated(const GuestMemfd *gmem, uint64_t offset,
                           uint64_t size, uint64_t *bytes);

/* system/guest-memfd-convert.c */

/**
 * guest_memfd_state_init: all pages of a new block are shared
 * @gmem: its rb is set
 * @can_be_private: pages can be converted
 */
void guest_memfd_state_init(GuestMemfd *gmem, bool can_be_private);

/** guest_memfd_state_destroy: nobody converts pages of it any more. */
void guest_memfd_state_destroy(GuestMemfd *gmem);

/**
 * guest_memfd_state_clear: nobody may access the block until further notice
 *
 * No vCPU runs, and listeners have nothing of it.
 */
void guest_memfd_state_clear(GuestMemfd *gmem);

/**
 * guest_memfd_state_reset: the block has a new file, all of it shared
 *
 * Counters begin anew.  No vCPU runs.
 */
void guest_memfd_state_reset(GuestMemfd *gmem);

/**
 * guest_memfd_convert: make ranges private or shared, all of them or none
 * @ranges: @n of them; they do not overlap
 *
 * Pages that are in that state stay as they are, and cost nothing.  Discard
 * listeners of the blocks hear of pages that become private before, and of
 * those that become shared after.  May be called with or without the BQL, by
 * any thread; if it has to wait for another conversion of the same pages, it
 * gives up the BQL meanwhile.  It keeps the BQL while the kernel converts, and
 * while a page is busy, up to a second for each: so hold it only where no vCPU
 * runs.
 * The blocks must not go meanwhile.  Contents are the kernel's affair: for SNP
 * and TDX guests they are lost, also where a failed request is undone.
 *
 * Returns: 0; -EAGAIN if somebody holds a page for longer than we wait;
 * -errno of the kernel, or of a listener.  On error, all is as it was.
 */
int guest_memfd_convert(const GuestMemfdRange *ranges, unsigned n,
                        bool to_private);

/**
 * guest_memfd_convert_gpa: the same for guest physical addresses
 * @gpa, @size: bytes
 * @patience: NULL for that of guest_memfd_convert()
 *
 * Where there is no memory, "shared" is what it is, so that is no error.
 * Where private memory is separate, QEMU converts it, with the BQL held.
 * Returns: as above; -EINTR if it was interrupted; -EINVAL if the range is
 * empty, not aligned to pages, wraps around, or if something in there cannot
 * be private.
 */
int guest_memfd_convert_gpa(hwaddr gpa, hwaddr size, bool to_private,
                            const GuestMemfdPatience *patience);

/**
 * guest_memfd_gpa_differs: is there a page in another state than that?
 * @gpa, @size: bytes
 *
 * Where there is no memory, "shared" is what it is.  Needs no lock.
 * Returns: 0 or 1, or -EINVAL as above.
 */
int guest_memfd_gpa_differs(hwaddr gpa, hwaddr size, bool private);

/**
 * guest_memfd_busy_page: which page of a range was busy last
 * @gpa, @size: bytes, that were to become private
 *
 * Returns: text for a message, which the caller owns; NULL if none was.
 */
char *guest_memfd_busy_page(hwaddr gpa, hwaddr size);

/**
 * guest_memfd_conversions: conversions that changed a page so far, of any
 * block.  Needs no lock.
 */
uint64_t guest_memfd_conversions(void);

/**
 * guest_memfd_tell_listeners: from now on, of this block
 *
 * It was launching, and is all private now.
 */
void guest_memfd_tell_listeners(GuestMemfd *gmem);

/**
 * guest_memfd_any_private: is one of these pages private?
 * @offset, @size: bytes in the block; need not be aligned
 *
 * Needs no lock.
 */
bool guest_memfd_any_private(GuestMemfd *gmem, uint64_t offset, uint64_t size);

/**
 * guest_memfd_private_runs: how many runs of private pages there are
 */
uint64_t guest_memfd_private_runs(GuestMemfd *gmem);

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
 * state.lock is held.  "No" is good for as long as it is.
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
 * guest_memfd_notify_populate_all: listeners may map all that is shown
 *
 * They have nothing of the block.  Returns: 0; or -errno of a listener.
 */
int guest_memfd_notify_populate_all(GuestMemfd *gmem);

/* system/guest-memfd-access.c; see also guest-memfd-access.h */

/** guest_memfd_access_init: there is a block with pages that can be private. */
void guest_memfd_access_init(void);

/** guest_memfd_access_end: that block is gone, with its mapping. */
void guest_memfd_access_end(GuestMemfd *gmem);

/**
 * guest_memfd_remap: map the block's file in the place of all that is mapped
 * there now
 *
 * No page is covered any more.  Returns: false with errno set on error.
 */
bool guest_memfd_remap(GuestMemfd *gmem);

/**
 * guest_memfd_uncover: map the file again where pages are covered
 * @first, @end: pages, which are shared
 *
 * access_lock is held.
 */
void guest_memfd_uncover(GuestMemfd *gmem, uint64_t first, uint64_t end);

/* system/guest-memfd-cgs.c: what is asked for, and what shall be done */

/**
 * guest_memfd_in_place: is RAM of this machine's guest converted in place?
 *
 * It is, if the guest is a confidential one, the host can do it, and
 * convert-in-place is not off.  The answer does not change once KVM runs.
 * Needs no lock.
 */
bool guest_memfd_in_place(void);

/** guest_memfd_cgs_class_add: give confidential guests "convert-in-place=". */
void guest_memfd_cgs_class_add(ObjectClass *oc);

/**
 * guest_memfd_cgs_check: can the host do what the user wants?
 *
 * Called when KVM has created the VM, before anything else is.
 */
bool guest_memfd_cgs_check(ConfidentialGuestSupport *cgs, Error **errp);

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

/* system/guest-memfd-rebuild.c: a reset that needs a new VM */

/**
 * guest_memfd_rebuild: AccelClass::rebuild_guest, and what it needs
 * @rebuild: that method
 *
 * vCPUs stand still.
 * Returns: what @rebuild does, 0 or -errno.
 */
int guest_memfd_rebuild(int (*rebuild)(MachineState *ms), MachineState *ms);

/**
 * guest_memfd_rebind: give RAM to the VM that was just created
 *
 * Returns: 0; or -errno, and somebody was told why.
 */
int guest_memfd_rebind(void);

/** guest_memfd_rebuilds: how often that was done so far.  Needs no lock. */
uint64_t guest_memfd_rebuilds(void);

/**
 * guest_memfd_rebuild_failed: was the guest lost by the last reset?
 *
 * It must not run then, and can be reset again.
 */
bool guest_memfd_rebuild_failed(void);

/**
 * guest_memfd_rebuild_notify: have QEMU save what the VM knows
 * @notify: how
 *
 * Not if the last attempt has left no whole VM: what it was is saved.
 * Returns: what @notify does, 0 or -errno.
 */
int guest_memfd_rebuild_notify(int (*notify)(Error **errp), Error **errp);

/**
 * guest_memfd_rebuild_vcpus: make vCPUs anew
 * @rebind: how
 *
 * QEMU frees a vCPU twice if that fails and is tried again, so it is not.
 * Returns: what @rebind does, 0 or -errno; errors are reported.
 */
int guest_memfd_rebuild_vcpus(int (*rebind)(Error **errp), Error **errp);

/**
 * guest_memfd_rebuild_region_failed: may a memslot that KVM refuses be missing?
 * @create: KVM has refused to create it, not to delete it
 *
 * Returns: true during a reset that makes a new VM: slots of the old one go
 * with it, and without a slot the new one does not run.
 */
bool guest_memfd_rebuild_region_failed(bool create);

/** guest_memfd_reset_end: the devices are reset, and the guest is launched. */
void guest_memfd_reset_end(void);

/** guest_memfd_state_after_reset: of a VM that does not run. */
RunState guest_memfd_state_after_reset(void);

/**
 * guest_memfd_may_launch: may a reset launch the guest?
 *
 * A guest with a new VM has to be launched before it runs on, even if it is
 * stopped now.
 */
bool guest_memfd_may_launch(void);

/**
 * guest_memfd_launch_failed: the guest cannot be launched
 * @err: why; reported and freed
 *
 * If it was to be launched for the first time, QEMU ends.  Else the VM is
 * stopped when the reset is over.
 */
void guest_memfd_launch_failed(Error *err);

/**
 * guest_memfd_relaunch_failed: the same for an error that QEMU reports
 * @ret: what a step of the launch has come to; not 0 is an error
 *
 * Returns: false if there is no error, or if QEMU is to end as it would.
 */
bool guest_memfd_relaunch_failed(int ret);

/**
 * guest_memfd_launch_errp: for a step that QEMU expects to end it on error
 *
 * Returns: error_fatal for the first launch.  Else what guest_memfd_launch_ok()
 * looks at; that has to be called before the launch is finished.
 */
Error **guest_memfd_launch_errp(void);

/** guest_memfd_launch_ok: has every step of the launch succeeded so far? */
bool guest_memfd_launch_ok(void);

/* system/guest-memfd-launch.c: firmware and RAM of a guest, before it runs */

#define GUEST_MEMFD_DIGEST 48   /* bytes of a SHA-384 */

/**
 * GuestMemfdLaunchRange: what a launch gave to the platform
 * @gpa, @size: bytes
 * @type: the platform's name for this kind of page.  Static.
 * @measured: does the contents count?
 * @digest: SHA-384 of the contents, if @measured
 */
typedef struct GuestMemfdLaunchRange {
    uint64_t gpa;
    uint64_t size;
    const char *type;
    bool measured;
    uint8_t digest[GUEST_MEMFD_DIGEST];
    QSIMPLEQ_ENTRY(GuestMemfdLaunchRange) next;
} GuestMemfdLaunchRange;

typedef QSIMPLEQ_HEAD(, GuestMemfdLaunchRange) GuestMemfdLaunch;

/** guest_memfd_launch: all ranges so far, in order. */
const GuestMemfdLaunch *guest_memfd_launch(void);

/**
 * guest_memfd_launch_host: where a range of guest memory is mapped
 * @gpa, @size: bytes
 *
 * Returns: NULL with @errp set if it is not wholly in one block that is
 * converted in place, or if a page of it is launched or private.
 */
void *guest_memfd_launch_host(hwaddr gpa, hwaddr size, Error **errp);

/**
 * guest_memfd_launch_range: make a range private, to be populated in place
 * @gpa, @size: bytes
 * @type: see GuestMemfdLaunchRange
 * @written: the contents matters, so somebody must have written it
 * @measured: the contents counts
 *
 * Its contents is taken down before it cannot be seen any more.
 * Returns: false with @errp set, and with the range as it was.
 */
bool guest_memfd_launch_range(hwaddr gpa, hwaddr size, const char *type,
                              bool written, bool measured, Error **errp);

/**
 * guest_memfd_launch_check_contents: is a range that has contents empty?
 * @gpa, @size: bytes
 * @type: see GuestMemfdLaunchRange
 *
 * For ranges that no guest can do with all zeros, before they are private.
 * Returns: false with @errp set if every byte is 0, or as
 * guest_memfd_launch_host().
 */
bool guest_memfd_launch_check_contents(hwaddr gpa, hwaddr size,
                                       const char *type, Error **errp);

/**
 * guest_memfd_launch_note: take down a range that is populated from elsewhere
 * @contents: @size bytes if they count, else NULL
 *
 * For separate memory; else as guest_memfd_launch_range(), without the checks.
 */
bool guest_memfd_launch_note(hwaddr gpa, hwaddr size, const char *type,
                             const void *contents, Error **errp);

/**
 * guest_memfd_launch_finish: make the rest of RAM private
 *
 * One conversion a block, or as many as ranges were launched in between.
 */
bool guest_memfd_launch_finish(Error **errp);

/** guest_memfd_launch_reset: the guest will be launched again, in a new VM. */
void guest_memfd_launch_reset(void);

/** guest_memfd_launch_is_finished: RAM that is added now starts private. */
bool guest_memfd_launch_is_finished(void);

/**
 * guest_memfd_launch_digest: SHA-384
 * @size: bytes at @data
 */
bool guest_memfd_launch_digest(const void *data, size_t size,
                               uint8_t digest[GUEST_MEMFD_DIGEST],
                               Error **errp);

/** guest_memfd_launch_hex: @digest as text, which the caller owns. */
char *guest_memfd_launch_hex(const uint8_t digest[GUEST_MEMFD_DIGEST]);

/**
 * guest_memfd_launch_measured: the platform is expected to report @digest
 *
 * Called once, when all is populated.
 */
void guest_memfd_launch_measured(LaunchMeasurementType type,
                                 const uint8_t digest[GUEST_MEMFD_DIGEST]);

/**
 * guest_memfd_launch_measurement: what the platform is expected to report
 *
 * Returns: NULL before that is known.
 */
const LaunchMeasurement *guest_memfd_launch_measurement(void);

/* accel/kvm/guest-memfd.c; accel/stubs/ without KVM */

/**
 * kvm_guest_memfd_set_private: convert a range of a file
 * @fd: the guest_memfd
 * @offset, @size: bytes, multiples of the host's page size
 * @error_offset: set to the offset of the first busy page on -EAGAIN
 *
 * One system call, made without waiting for anything of QEMU's.  Needs no
 * lock.
 * Returns: 0; or -errno, and then no page has changed.
 */
int kvm_guest_memfd_set_private(int fd, uint64_t offset, uint64_t size,
                                bool private, uint64_t *error_offset);

/**
 * kvm_guest_memfd_caps: what the host can do
 *
 * Asks the kernel once, when first called with KVM running.  Never fails:
 * without KVM the answer is generation "none".  The result is static.
 */
const GuestMemfdCaps *kvm_guest_memfd_caps(void);

/**
 * kvm_guest_memfd_create: create a mappable guest_memfd, all shared
 * @size: bytes, a multiple of the host's page size
 *
 * Returns: a file descriptor with close-on-exec set, which the caller owns;
 * or -1 with @errp set.
 */
int kvm_guest_memfd_create(uint64_t size, Error **errp);

/**
 * kvm_guest_memfd_set_region: create, change or delete a memslot
 * @kml: the listener of its address space; its slots lock is held
 * @slot: as kvm-all.c has filled it in; size 0 means delete
 * @new: the slot does not exist yet
 * @ret: 0 or -errno
 *
 * Returns: false, with nothing done, if the slot is not on a guest_memfd.
 */
bool kvm_guest_memfd_set_region(struct KVMMemoryListener *kml,
                                struct KVMSlot *slot, bool new, int *ret);

/**
 * kvm_guest_memfd_region_result: what becomes of a memslot that KVM refuses
 * @slot: as above; need not be on a guest_memfd
 * @ret: 0 or -errno of KVM, which was reported
 *
 * Our caller's caller aborts on an error, even where a slot may be missing.
 * Returns: 0 there; else @ret.
 */
int kvm_guest_memfd_region_result(const struct KVMSlot *slot, int ret);

/**
 * kvm_guest_memfd_commit: bind slots that were aliases and no longer are
 * @kml: its memory transaction has just been carried out; slots lock held
 */
void kvm_guest_memfd_commit(struct KVMMemoryListener *kml);

/* accel/kvm/guest-memfd-exit.c: what a vCPU leaves KVM for */

struct kvm_run;

/**
 * kvm_guest_memfd_hypercall: serve a hypercall of a guest
 * @run: of @cpu, which left with KVM_EXIT_HYPERCALL
 * @ret: set to what to do with the vCPU; 0: run it
 *
 * All of these are called by the vCPU's thread, without the BQL.
 * Returns: false if it is none of ours.
 */
bool kvm_guest_memfd_hypercall(CPUState *cpu, struct kvm_run *run, int *ret);

/**
 * kvm_guest_memfd_resume: go on with a hypercall that was interrupted
 *
 * Before @cpu enters KVM.
 * Returns: false; or true if it was interrupted again, or is given up, with
 * @ret as above.
 */
bool kvm_guest_memfd_resume(CPUState *cpu, struct kvm_run *run, int *ret);

/**
 * kvm_guest_memfd_memory_fault: serve a KVM_EXIT_MEMORY_FAULT
 *
 * Returns: what to do with the vCPU; 0: run it; less: it cannot go on, and
 * somebody was told why.
 */
int kvm_guest_memfd_memory_fault(CPUState *cpu, struct kvm_run *run);

/**
 * kvm_guest_memfd_retry: may KVM_RUN be tried again?
 * @error: what it failed with, -errno
 */
bool kvm_guest_memfd_retry(CPUState *cpu, struct kvm_run *run, int error);

/**
 * kvm_guest_memfd_vcpu_is_lost: has a failed reset left nothing of @cpu?
 *
 * Called by a signal handler, too.
 */
bool kvm_guest_memfd_vcpu_is_lost(const CPUState *cpu);

/**
 * kvm_guest_memfd_is_mmio: is a KVM_EXIT_MMIO one?
 *
 * Returns: false if it is about private memory; somebody was told.
 */
bool kvm_guest_memfd_is_mmio(struct kvm_run *run);

/* backends/hostmem-guest-memfd.c */

/**
 * guest_memfd_backend_selected: is @backend, which is no
 * memory-backend-guest-memfd, to be a guest_memfd all the same?
 */
bool guest_memfd_backend_selected(HostMemoryBackend *backend);

/**
 * guest_memfd_backend_alloc: HostMemoryBackendClass::alloc of such a backend
 *
 * Checks every property, then creates the memory.
 */
bool guest_memfd_backend_alloc(HostMemoryBackend *backend, Error **errp);

/** guest_memfd_backend_class_add: give a backend class "guest-memfd=". */
void guest_memfd_backend_class_add(ObjectClass *oc);

/**
 * guest_memfd_backend_set_merge: the user sets "merge" to @value
 *
 * Returns: false with @errp set if @backend cannot have that.
 */
bool guest_memfd_backend_set_merge(HostMemoryBackend *backend, bool value,
                                   Error **errp);

#endif
