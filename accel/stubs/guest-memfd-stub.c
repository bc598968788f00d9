/*
 * KVM guest_memfd where the emulator has no KVM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bitops.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "system/kvm.h"

const GuestMemfdCaps *kvm_guest_memfd_caps(void)
{
    static const GuestMemfdCaps none = {
        .missing = BIT(GUEST_MEMFD_MISSING_KVM),
        .missing_text = "this emulator has no KVM",
    };

    return &none;
}

int kvm_guest_memfd_create(uint64_t size, Error **errp)
{
    error_setg(errp, "%s", kvm_guest_memfd_caps()->missing_text);
    return -1;
}

int kvm_guest_memfd_set_private(int fd, uint64_t offset, uint64_t size,
                                bool private, uint64_t *error_offset)
{
    return -ENOSYS;
}

int kvm_convert_memory(hwaddr start, hwaddr size, bool to_private)
{
    return -ENOSYS;
}

void kvm_mark_guest_state_protected(void)
{
    g_assert_not_reached();
}
