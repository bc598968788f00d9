/*
 * Confidential guests: is their memory converted in place?
 *
 * What the host can do, what the user asks for, and the one answer.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/boards.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qom/object.h"
#include "system/confidential-guest-support.h"
#include "system/guest-memfd.h"
#include "system/guest-memfd-compat.h"
#include "gmem/trace.h"

/* What gives a host conversion in place. */
#define HOW_TO_GET_IT                                                       \
    "Conversion in place needs a kernel with KVM's in-place conversion of "  \
    "guest_memfd (later than Linux 7.3), booted with "                      \
    "kvm.gmem_in_place_conversion=1.  See 'info guest-memfd' for what this " \
    "host offers.\n"

/* Decided once, when KVM has created the VM. */
static bool in_place;

bool guest_memfd_in_place(void)
{
    return in_place;
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
                   "memory-backend-ram or memory-backend-memfd", type,
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

static int get_convert_in_place(Object *obj, Error **errp)
{
    return CONFIDENTIAL_GUEST_SUPPORT(obj)->convert_in_place;
}

static void set_convert_in_place(Object *obj, int value, Error **errp)
{
    CONFIDENTIAL_GUEST_SUPPORT(obj)->convert_in_place = value;
}

void guest_memfd_cgs_class_add(ObjectClass *oc)
{
    object_class_property_add_enum(oc, "convert-in-place", "OnOffAuto",
                                   &OnOffAuto_lookup, get_convert_in_place,
                                   set_convert_in_place);
    object_class_property_set_description(oc, "convert-in-place",
        "One guest_memfd serves shared and private memory (default: auto, "
        "which is on where the host can do it)");
}
