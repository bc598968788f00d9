/*
 * -object sw-protected-guest: a guest of type KVM_X86_SW_PROTECTED_VM
 *
 * It has private memory as SEV-SNP and TDX guests have, converts it by the
 * same hypercall, and needs no special processor: a vehicle for development
 * and tests.  KVM protects nothing of it but keeps private memory out of the
 * guest's shared view.  There is no launch and no measurement; registers are
 * not protected, so the guest can be reset.
 *
 * Firmware stays ordinary ROM, as in guests without private memory: KVM's
 * instruction emulator fetches from shared memory only, and a read-only
 * memslot cannot have private memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/target_page.h"
#include "hw/i386/x86.h"
#include "hw/core/resettable.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "qapi/qapi-types-qom.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qom/object_interfaces.h"
#include "system/address-spaces.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/kvm.h"
#include "system/ramblock.h"
#include "system/reset.h"
#include "kvm/kvm_i386.h"
#include "confidential-guest.h"

#include <linux/kvm.h>
#include "standard-headers/asm-x86/kvm_para.h"
#include <linux/kvm_para.h>

#define TYPE_SW_PROTECTED_GUEST "sw-protected-guest"
OBJECT_DECLARE_SIMPLE_TYPE(SwProtectedGuest, SW_PROTECTED_GUEST)

/**
 * SwProtectedGuest:
 * @reset_state: of the Resettable
 * @initial_state: of all RAM when the first vCPU starts, and after a reset
 * @migration_blocker: set while KVM has the VM
 */
struct SwProtectedGuest {
    X86ConfidentialGuest parent_obj;

    ResettableState reset_state;
    SwProtectedState initial_state;
    Error *migration_blocker;
};

/*
 * Separate memory: what is private at these addresses becomes shared.
 * @opaque: the gpa of the region's first byte; wraps around if that is not
 *          mapped
 */
static int share_attributes(const MemoryRegionSection *private, void *opaque)
{
    const hwaddr *region = opaque;

    return kvm_set_memory_attributes_shared(
        *region + private->offset_within_region,
        int128_get64(private->size));
}

/* flatview_cb: stops at an error, which goes to the int at @opaque. */
static bool share_range(Int128 start, Int128 size, const MemoryRegion *mr,
                        hwaddr offset, void *opaque)
{
    MemoryRegionSection section = {
        .mr = (MemoryRegion *)mr,
        .offset_within_region = offset,
        .offset_within_address_space = int128_get64(start),
        .size = size,
    };
    hwaddr region = int128_get64(start) - offset;
    int *ret = opaque;

    if (memory_region_has_guest_memfd(section.mr)) {
        *ret = ram_discard_manager_replay_discarded(
            memory_region_get_ram_discard_manager(section.mr), &section,
            share_attributes, &region);
    }
    return *ret;
}

/* flatview_cb: all of RAM becomes private, and its shared bytes go. */
static bool hide_range(Int128 start, Int128 size, const MemoryRegion *mr,
                       hwaddr offset, void *opaque)
{
    int *ret = opaque;

    if (memory_region_has_guest_memfd((MemoryRegion *)mr)) {
        *ret = kvm_convert_memory(int128_get64(start), int128_get64(size),
                                  true);
    }
    return *ret;
}

/* Private memory of a block goes; its listeners hear that all is shared. */
static int share_block(RAMBlock *rb, void *opaque)
{
    int ret = 0;

    if (rb->guest_memfd >= 0) {
        ret = ram_block_attributes_state_change(
            rb->attributes, 0, memory_region_size(rb->mr), false);
    }
    if (rb->guest_memfd >= 0 && !ret) {
        ret = ram_block_discard_guest_memfd_range(rb, 0, rb->used_length);
    }
    return ret;
}

/*
 * Private memory is separate.  KVM knows states by guest physical address,
 * QEMU by RAM block, and the two part where the guest has hidden RAM behind
 * ROM or a display after it has converted it.  It can do so below 1 MiB only.
 */
static int share_separate(FlatView *view)
{
    int ret = 0;

    flatview_for_each_range(view, share_range, &ret);
    if (!ret) {
        ret = kvm_set_memory_attributes_shared(0, 1 * MiB);
    }
    return ret ?: qemu_ram_foreach_block(share_block, NULL);
}

/* RAM behind ROM stays shared, for its addresses are the ROM's. */
static int hide_separate(FlatView *view)
{
    int ret = 0;

    flatview_for_each_range(view, hide_range, &ret);
    return ret;
}

/* Contents stay as they are. */
static int convert_in_place(bool to_private)
{
    GuestMemfd *gmem;
    int ret = 0;

    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        ret = ret ?: guest_memfd_convert_all(gmem, to_private);
    }
    return ret;
}

static int convert_separate(bool to_private)
{
    FlatView *view;

    RCU_READ_LOCK_GUARD();
    view = address_space_to_flatview(&address_space_memory);
    return to_private ? hide_separate(view) : share_separate(view);
}

/*
 * A reset has no way to fail.  The guest must not run in a state that
 * it was not promised, so this is the end.
 */
static void set_all_ram(SwProtectedState state)
{
    bool to_private = state == SW_PROTECTED_STATE_PRIVATE;
    int ret = guest_memfd_in_place() ? convert_in_place(to_private)
                                     : convert_separate(to_private);

    if (ret) {
        error_report("cannot make all RAM of the sw-protected-guest %s: %s",
                     SwProtectedState_str(state), strerror(-ret));
        exit(EXIT_FAILURE);
    }
}

static ResettableState *swp_reset_state(Object *obj)
{
    return &SW_PROTECTED_GUEST(obj)->reset_state;
}

/*
 * KVM makes this object the first to be reset, and vCPUs stand still: all RAM
 * is shared before others write to it, firmware and what else was loaded.
 */
static void swp_reset_hold(Object *obj, ResetType type)
{
    if (type != RESET_TYPE_WAKEUP) {
        set_all_ram(SW_PROTECTED_STATE_SHARED);
    }
}

static void swp_reset_exit(Object *obj, ResetType type)
{
    SwProtectedGuest *swp = SW_PROTECTED_GUEST(obj);

    if (type != RESET_TYPE_WAKEUP &&
        swp->initial_state != SW_PROTECTED_STATE_SHARED) {
        set_all_ram(swp->initial_state);
    }
}

static int swp_kvm_type(X86ConfidentialGuest *cg)
{
    if (!kvm_is_vm_type_supported(KVM_X86_SW_PROTECTED_VM)) {
        error_report("sw-protected-guest needs a KVM with software-protected "
                     "VMs (type %d in KVM_CAP_VM_TYPES), which this host's "
                     "has not; boot a kernel that is built with "
                     "CONFIG_KVM_SW_PROTECTED_VM=y, with two-dimensional "
                     "paging (npt or ept) on", KVM_X86_SW_PROTECTED_VM);
        exit(EXIT_FAILURE);
    }
    return KVM_X86_SW_PROTECTED_VM;
}

static int swp_kvm_init(ConfidentialGuestSupport *cgs, Error **errp)
{
    SwProtectedGuest *swp = SW_PROTECTED_GUEST(cgs);
    X86MachineState *x86ms = X86_MACHINE(current_machine);

    if (x86ms->smm == ON_OFF_AUTO_ON) {
        error_setg(errp, "a sw-protected-guest has no system management "
                   "mode; do not ask for smm=on");
        return -EINVAL;
    }
    x86ms->smm = ON_OFF_AUTO_OFF;

    if (!kvm_enable_hypercall(BIT_ULL(KVM_HC_MAP_GPA_RANGE))) {
        error_setg(errp, "sw-protected-guest needs KVM_CAP_EXIT_HYPERCALL "
                   "with KVM_HC_MAP_GPA_RANGE (Linux 5.14), which this host's "
                   "KVM has not; boot a later kernel");
        return -ENOTSUP;
    }

    /* A new VM of the same guest: the rest is there. */
    if (cgs->ready) {
        return 0;
    }
    error_setg(&swp->migration_blocker,
               "A sw-protected-guest has private memory, which cannot be "
               "migrated");
    if (migrate_add_blocker(&swp->migration_blocker, errp) < 0) {
        return -EBUSY;
    }

    qemu_register_resettable(OBJECT(swp));
    cgs->ready = true;
    return 0;
}

static int swp_get_initial_state(Object *obj, Error **errp)
{
    return SW_PROTECTED_GUEST(obj)->initial_state;
}

static void swp_set_initial_state(Object *obj, int value, Error **errp)
{
    SW_PROTECTED_GUEST(obj)->initial_state = value;
}

OBJECT_DEFINE_SIMPLE_TYPE_WITH_INTERFACES(SwProtectedGuest,
                                          sw_protected_guest,
                                          SW_PROTECTED_GUEST,
                                          X86_CONFIDENTIAL_GUEST,
                                          { TYPE_USER_CREATABLE },
                                          { TYPE_RESETTABLE_INTERFACE },
                                          { })

static void sw_protected_guest_init(Object *obj)
{
    ConfidentialGuestSupport *cgs = CONFIDENTIAL_GUEST_SUPPORT(obj);

    cgs->require_guest_memfd = true;
    cgs->starts_shared = true;
    cgs->takes_any_state = true;
    cgs->retries = true;
}

static void sw_protected_guest_finalize(Object *obj)
{
    migrate_del_blocker(&SW_PROTECTED_GUEST(obj)->migration_blocker);
}

static void sw_protected_guest_class_init(ObjectClass *oc, const void *data)
{
    ConfidentialGuestSupportClass *klass = CONFIDENTIAL_GUEST_SUPPORT_CLASS(oc);
    X86ConfidentialGuestClass *x86_klass = X86_CONFIDENTIAL_GUEST_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    klass->kvm_init = swp_kvm_init;
    klass->can_rebuild_guest_state = true;
    x86_klass->kvm_type = swp_kvm_type;
    rc->get_state = swp_reset_state;
    rc->phases.hold = swp_reset_hold;
    rc->phases.exit = swp_reset_exit;

    object_class_property_add_enum(oc, "initial-state", "SwProtectedState",
                                   &SwProtectedState_lookup,
                                   swp_get_initial_state,
                                   swp_set_initial_state);
    object_class_property_set_description(
        oc, "initial-state", "State of all RAM when the guest starts");
}
