/*
 * RAM blocks that are a KVM guest_memfd: what QEMU calls
 *
 * A RAM block of this kind has one file, a guest_memfd, and QEMU's mapping of
 * it; the guest is served from the same pages.  All functions are called with
 * the BQL held unless they say otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_H
#define SYSTEM_GUEST_MEMFD_H

#include "qemu/thread-context.h"
#include "system/hostmem.h"

#define TYPE_MEMORY_BACKEND_GUEST_MEMFD "memory-backend-guest-memfd"

typedef struct GuestMemfd GuestMemfd;

/* system/guest-memfd.c: RAM blocks */

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
 * guest_memfd_ram_file: the file for a device that maps a block by file
 * @rb: the block, or NULL
 *
 * Returns: -1 if it has none, or if that is a guest_memfd, which only KVM and
 * mmap() can map.
 */
int guest_memfd_ram_file(RAMBlock *rb);

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

/* system/guest-memfd-cgs.c: confidential guests */

/**
 * guest_memfd_in_place: is RAM of this machine's guest converted in place?
 *
 * It is, if the guest is a confidential one, the host can do it, and
 * convert-in-place is not off.  The answer does not change once KVM runs.
 * Needs no lock.
 */
bool guest_memfd_in_place(void);

/**
 * guest_memfd_shared_file: the file of @rb that other processes may have
 * @rb: any RAM block
 *
 * Needs no lock.
 * Returns: a descriptor, which belongs to @rb; or -1 if it has none, or if
 * pages of it can be private and the user has not said share-file=on.
 */
int guest_memfd_shared_file(const RAMBlock *rb);

/**
 * guest_memfd_check_vhost_user: may there be vhost-user back ends?
 *
 * Returns: false with @errp set if they would need files of memory that they
 * must not have.
 */
bool guest_memfd_check_vhost_user(Error **errp);

/**
 * guest_memfd_cgs_class_add: give confidential guests "convert-in-place=" and
 * "share-file="
 */
void guest_memfd_cgs_class_add(ObjectClass *oc);

/**
 * guest_memfd_cgs_check: can the host do what the user wants?
 *
 * Called when KVM has created the VM, before anything else is.
 */
bool guest_memfd_cgs_check(ConfidentialGuestSupport *cgs, Error **errp);

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
