/*
 * Confidential guests: is their memory converted in place, and if so, their
 * RAM blocks
 *
 * What the host can do, what the user asks for, and the one answer.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/core/boards.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qemu/bitmap.h"
#include "qemu/mmap-alloc.h"
#include "qom/object.h"
#include "system/confidential-guest-support.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-launch.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "gmem/trace.h"

/* What gives a host conversion in place. */
#define HOW_TO_GET_IT                                                       \
    "Conversion in place needs a kernel with KVM's in-place conversion of "  \
    "guest_memfd (later than Linux 7.3), booted with "                      \
    "kvm.gmem_in_place_conversion=1.  See 'info guest-memfd' for what this " \
    "host offers.\n"

/* Decided once, when KVM has created the VM. */
static bool in_place;
static bool share_file;

bool guest_memfd_in_place(void)
{
    return in_place;
}

/* QEMU takes memory that can be private for private at first. */
static void separate_block_added(RAMBlockNotifier *n, void *host, size_t size,
                                 size_t max_size)
{
    ram_addr_t offset;
    RAMBlock *rb = qemu_ram_block_from_host(host, false, &offset);

    if (rb && rb->attributes) {
        bitmap_set(rb->attributes->bitmap, 0, rb->attributes->bitmap_size);
    }
}

static void share_separate_blocks(void)
{
    static RAMBlockNotifier notifier = {
        .ram_block_added = separate_block_added,
    };

    ram_block_notifier_add(&notifier);
}

bool guest_memfd_cgs_check(ConfidentialGuestSupport *cgs, Error **errp)
{
    ERRP_GUARD();
    const char *type;
    OnOffAuto mode;
    GuestMemfdGeneration generation;

    if (!cgs) {
        return true;
    }
    type = object_get_typename(OBJECT(cgs));
    mode = cgs->convert_in_place;
    if (!cgs->require_guest_memfd) {
        if (mode == ON_OFF_AUTO_ON) {
            error_setg(errp, "%s: 'convert-in-place=on' is not possible, "
                       "because the memory of such a guest is no "
                       "guest_memfd; leave it out", type);
            return false;
        }
        return true;
    }

    generation = kvm_guest_memfd_caps()->generation;
    trace_guest_memfd_cgs_check(type, OnOffAuto_str(mode),
                                GuestMemfdGeneration_str(generation));
    if (generation == GUEST_MEMFD_GENERATION_IN_PLACE) {
        if (mode == ON_OFF_AUTO_OFF) {
            error_setg(errp, "%s: 'convert-in-place=off' is not possible, "
                       "because this host converts in place only; leave it "
                       "out", type);
            error_append_hint(errp, "A kernel that was booted with "
                              "kvm.gmem_in_place_conversion=0 keeps private "
                              "memory separate.\n");
            return false;
        }
        in_place = true;
        share_file = cgs->share_file;
        return true;
    }
    if (mode == ON_OFF_AUTO_ON) {
        error_setg(errp, "%s: 'convert-in-place=on' is not possible, because "
                   "the host's KVM does not convert guest_memfd in place for "
                   "this type of VM", type);
        error_append_hint(errp, HOW_TO_GET_IT);
        return false;
    }
    if (generation != GUEST_MEMFD_GENERATION_LEGACY) {
        error_setg(errp, "%s: the host's KVM has no private memory for this "
                   "type of VM: it neither keeps the state of pages in the VM "
                   "(KVM_CAP_MEMORY_ATTRIBUTES) nor converts guest_memfd in "
                   "place", type);
        error_append_hint(errp, HOW_TO_GET_IT);
        return false;
    }
    if (cgs->starts_shared) {
        share_separate_blocks();
    }
    return true;
}

bool guest_memfd_cgs_check_backend(const char *type, Error **errp)
{
    ERRP_GUARD();
    ConfidentialGuestSupport *cgs = current_machine->cgs;

    if (!cgs || in_place) {
        return true;
    }
    if (cgs->require_guest_memfd) {
        error_setg(errp, "%s can be memory of a confidential guest only where "
                   "that is converted in place, which %s; use "
                   "memory-backend-ram, or memory-backend-memfd without "
                   "guest-memfd=on", type,
                   cgs->convert_in_place == ON_OFF_AUTO_OFF
                   ? "convert-in-place=off rules out"
                   : "this host cannot do");
        error_append_hint(errp, HOW_TO_GET_IT);
    } else {
        error_setg(errp, "%s cannot be memory of a %s; use "
                   "memory-backend-ram", type,
                   object_get_typename(OBJECT(cgs)));
    }
    return false;
}

/*
 * The descriptor of a guest_memfd cannot be had for reading only, and whoever
 * has it can convert pages and punch holes: the owner's contents are gone.
 */
int guest_memfd_shared_file(const RAMBlock *rb)
{
    return rb->gmem && guest_memfd_can_be_private(rb->gmem) && !share_file
           ? -1 : rb->fd;
}

bool guest_memfd_check_vhost_user(Error **errp)
{
    const char *type;

    if (!in_place || share_file) {
        return true;
    }
    type = object_get_typename(OBJECT(current_machine->cgs));
    error_setg(errp, "vhost-user is not possible with memory of a %s that is "
               "converted in place, because the back end would get its "
               "guest_memfd and could convert and discard the guest's pages; "
               "if the back end is trusted not to, add share-file=on to the "
               "%s object", type, type);
    return false;
}

bool guest_memfd_ram_is_in_place(uint32_t ram_flags)
{
    return ram_flags & RAM_GUEST_MEMFD && guest_memfd_in_place();
}

bool guest_memfd_ram_is_separate(const RAMBlock *rb)
{
    return rb->flags & RAM_GUEST_MEMFD && !guest_memfd_in_place();
}

/*
 * QEMU would do so together with the mapping, after a grace period.  By then
 * the memory region is gone, which may be part of a backend.
 */
void guest_memfd_ram_block_release(RAMBlock *rb)
{
    if (rb->guest_memfd >= 0) {
        if (rb->gmem) {
            guest_memfd_discard_end(rb->gmem);
        }
        close(rb->guest_memfd);
        rb->guest_memfd = -1;
        ram_block_coordinated_discard_require(false);
    }
}

bool guest_memfd_starts_private(MemoryRegion *mr)
{
    return memory_region_has_guest_memfd(mr) && !guest_memfd_in_place() &&
           !current_machine->cgs->starts_shared;
}

bool guest_memfd_patches_kernel(const MachineState *machine)
{
    return !machine->cgs || machine->cgs->starts_shared;
}

bool guest_memfd_is_required(const MachineState *machine)
{
    return machine->cgs && machine->cgs->require_guest_memfd;
}

bool guest_memfd_is_launching(void)
{
    return !current_machine->cgs->starts_shared &&
           !guest_memfd_launch_is_finished();
}

bool guest_memfd_ram_block_init(RAMBlock *rb, Error **errp)
{
    ERRP_GUARD();
    const char *name = memory_region_name(rb->mr);
    uint32_t map_flags = QEMU_MAP_SHARED;
    GuestMemfd *gmem;
    int fd, ret;

    if (!guest_memfd_ram_is_in_place(rb->flags)) {
        return true;
    }
    if (rb->host) {
        error_setg(errp, "Memory '%s' cannot be memory of a confidential "
                   "guest, because this host converts guest_memfd in place "
                   "and serves nothing else to such a guest", name);
        error_append_hint(errp, "Use memory-backend-guest-memfd, or "
                          "memory-backend-memfd without guest-memfd=off.\n");
        return false;
    }
    /* A device that pins all RAM would keep pages from becoming private. */
    if (ram_block_coordinated_discard_require(true) < 0) {
        error_setg(errp, "Memory '%s' cannot be converted between shared and "
                   "private, because a device pins all of it; remove the "
                   "device that disables discarding of RAM", name);
        return false;
    }
    gmem = guest_memfd_new(name, rb->max_length, true, &fd, errp);
    if (!gmem) {
        goto allow_discard;
    }

    rb->mr->align = MAX(rb->mr->align, QEMU_VMALLOC_ALIGN);
    map_flags |= rb->flags & RAM_NORESERVE ? QEMU_MAP_NORESERVE : 0;
    rb->host = qemu_ram_mmap(fd, rb->max_length, rb->mr->align, map_flags, 0);
    if (rb->host == MAP_FAILED) {
        error_setg_errno(errp, errno, "cannot map the guest_memfd of '%s'",
                         name);
        goto close;
    }
    /*
     * The block has its file twice, once for code that shares RAM with other
     * processes and once for KVM; each is closed with the block.
     */
    rb->fd = qemu_dup(fd);
    if (rb->fd < 0) {
        error_setg_errno(errp, errno, "cannot duplicate the guest_memfd");
        goto unmap;
    }
    gmem->rb = rb;
    if (!guest_memfd_discard_init(gmem, errp)) {
        goto close_both;
    }
    rb->guest_memfd = fd;
    rb->flags = (rb->flags & ~RAM_PRIVATE) | RAM_SHARED;
    guest_memfd_add(gmem, rb, true);
    gmem->state.launching = guest_memfd_is_launching();

    /* What is plugged into a guest that runs is private, as its RAM was. */
    if (guest_memfd_launch_is_finished()) {
        ret = guest_memfd_convert_all(gmem, true);
        if (ret) {
            error_setg_errno(errp, -ret, "Memory '%s' cannot be made private",
                             name);
            guest_memfd_ram_block_release(rb);
            guest_memfd_remove(gmem);
            qemu_ram_munmap(rb->fd, rb->host, rb->max_length);
            close(rb->fd);
            return false;
        }
    }
    return true;

close_both:
    close(rb->fd);
unmap:
    qemu_ram_munmap(fd, rb->host, rb->max_length);
close:
    close(fd);
    guest_memfd_free(gmem);
allow_discard:
    ram_block_coordinated_discard_require(false);
    return false;
}

static int get_convert_in_place(Object *obj, Error **errp)
{
    return CONFIDENTIAL_GUEST_SUPPORT(obj)->convert_in_place;
}

static void set_convert_in_place(Object *obj, int value, Error **errp)
{
    CONFIDENTIAL_GUEST_SUPPORT(obj)->convert_in_place = value;
}

static bool get_share_file(Object *obj, Error **errp)
{
    return CONFIDENTIAL_GUEST_SUPPORT(obj)->share_file;
}

static void set_share_file(Object *obj, bool value, Error **errp)
{
    CONFIDENTIAL_GUEST_SUPPORT(obj)->share_file = value;
}

void guest_memfd_cgs_class_add(ObjectClass *oc)
{
    object_class_property_add_enum(oc, "convert-in-place", "OnOffAuto",
                                   &OnOffAuto_lookup, get_convert_in_place,
                                   set_convert_in_place);
    object_class_property_set_description(oc, "convert-in-place",
        "One guest_memfd serves shared and private memory (default: auto, "
        "which is on where the host can do it)");
    object_class_property_add_bool(oc, "share-file", get_share_file,
                                   set_share_file);
    object_class_property_set_description(oc, "share-file",
        "Other processes may have the files of memory that is converted in "
        "place, by which they can convert and discard the guest's pages "
        "(default: off)");
}
