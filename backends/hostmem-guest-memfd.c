/*
 * Memory backend that is a KVM guest_memfd
 *
 * -object memory-backend-guest-memfd, and the same memory under the spelling
 * memory-backend-memfd,guest-memfd=on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/core/boards.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qom/object_interfaces.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"

static bool is_guest_memfd(HostMemoryBackend *backend)
{
    return object_dynamic_cast(OBJECT(backend),
                               TYPE_MEMORY_BACKEND_GUEST_MEMFD) ||
           (object_property_find(OBJECT(backend), "guest-memfd") &&
            guest_memfd_backend_selected(backend));
}

bool guest_memfd_backend_selected(HostMemoryBackend *backend)
{
    return backend->gmem.mode == ON_OFF_AUTO_ON ||
           (backend->gmem.mode == ON_OFF_AUTO_AUTO && guest_memfd_in_place());
}

/* What the properties ask for that a guest_memfd cannot be. */
static bool check_properties(HostMemoryBackend *backend, Error **errp)
{
    const char *type = object_get_typename(OBJECT(backend));
    size_t page_size = qemu_real_host_page_size();

    if (!backend->size) {
        error_setg(errp, "%s needs a 'size'", type);
        return false;
    }
    if (!QEMU_IS_ALIGNED(backend->size, page_size)) {
        error_setg(errp, "%s: 'size' 0x%" PRIx64 " is not a multiple of the "
                   "host's page size (%zu bytes)", type, backend->size,
                   page_size);
        return false;
    }
    if (!backend->share) {
        error_setg(errp, "%s: 'share=off' is not possible, because a "
                   "guest_memfd cannot be mapped privately; leave it out",
                   type);
        return false;
    }
    if (backend->gmem.merge_asked) {
        error_setg(errp, "%s: 'merge=on' is not possible, because KSM does "
                   "not merge pages of a guest_memfd; leave it out", type);
        return false;
    }
    if (object_property_find(OBJECT(backend), "hugetlb") &&
        object_property_get_bool(OBJECT(backend), "hugetlb", NULL)) {
        error_setg(errp, "%s: 'hugetlb=on' is not possible, because a "
                   "guest_memfd has no huge pages; leave it out", type);
        return false;
    }
    return true;
}

/* What the host or the machine lacks. */
static bool check_host(HostMemoryBackend *backend, Error **errp)
{
    const char *type = object_get_typename(OBJECT(backend));
    const GuestMemfdCaps *caps = kvm_guest_memfd_caps();

    if (!guest_memfd_cgs_check_backend(backend->gmem.mode == ON_OFF_AUTO_ON
                                       ? "memory-backend-memfd,guest-memfd=on"
                                       : type, errp)) {
        return false;
    }
    if (caps->missing) {
        error_setg(errp, "%s needs a mappable guest_memfd, but %s", type,
                   caps->missing_text);
        error_append_hint(errp, "See 'info guest-memfd' for what this host "
                          "offers.  memory-backend-memfd works everywhere.\n");
        return false;
    }
    if (backend->policy != HOST_MEM_POLICY_DEFAULT && !caps->numa_policy) {
        error_setg(errp, "%s: 'policy=%s' has no effect, because this kernel "
                   "ignores NUMA policies for guest_memfd; it takes "
                   "Linux 6.19, or leave out 'policy' and 'host-nodes'", type,
                   HostMemPolicy_str(backend->policy));
        return false;
    }
    return true;
}

bool guest_memfd_backend_alloc(HostMemoryBackend *backend, Error **errp)
{
    ERRP_GUARD();
    g_autofree char *name = host_memory_backend_get_name(backend);

    if (!check_properties(backend, errp) || !check_host(backend, errp)) {
        return false;
    }

    /* The default of the machine; nobody asked for it here. */
    backend->merge = false;
    backend->aligned = true;
    return guest_memfd_init_ram(&backend->mr, OBJECT(backend), name,
                                backend->size,
                                backend->reserve ? 0 : RAM_NORESERVE, errp);
}

bool guest_memfd_backend_set_merge(HostMemoryBackend *backend, bool value,
                                   Error **errp)
{
    backend->gmem.merge_asked = value;
    if (value && host_memory_backend_mr_inited(backend) &&
        is_guest_memfd(backend)) {
        return check_properties(backend, errp);
    }
    return true;
}

static int get_guest_memfd(Object *obj, Error **errp)
{
    return MEMORY_BACKEND(obj)->gmem.mode;
}

static void set_guest_memfd(Object *obj, int value, Error **errp)
{
    HostMemoryBackend *backend = MEMORY_BACKEND(obj);

    if (host_memory_backend_mr_inited(backend)) {
        error_setg(errp, "property 'guest-memfd' of %s cannot change once the "
                   "memory exists", object_get_typename(obj));
        return;
    }
    backend->gmem.mode = value;
}

void guest_memfd_backend_class_add(ObjectClass *oc)
{
    object_class_property_add_enum(oc, "guest-memfd", "OnOffAuto",
                                   &OnOffAuto_lookup, get_guest_memfd,
                                   set_guest_memfd);
    object_class_property_set_description(oc, "guest-memfd",
        "Use a KVM guest_memfd instead of a memfd (default: auto, which is on "
        "for confidential guests that are converted in place)");
}

static void guest_memfd_backend_init(Object *obj)
{
    MEMORY_BACKEND(obj)->share = true;
    MEMORY_BACKEND(obj)->merge = false;
}

static void guest_memfd_backend_class_init(ObjectClass *oc,
                                           const void *data)
{
    MEMORY_BACKEND_CLASS(oc)->alloc = guest_memfd_backend_alloc;
}

static const TypeInfo guest_memfd_backend_info = {
    .name = TYPE_MEMORY_BACKEND_GUEST_MEMFD,
    .parent = TYPE_MEMORY_BACKEND,
    .instance_init = guest_memfd_backend_init,
    .class_init = guest_memfd_backend_class_init,
};

static void guest_memfd_backend_register(void)
{
    type_register_static(&guest_memfd_backend_info);
}

type_init(guest_memfd_backend_register)
