/*
 * RAM blocks that are a guest_memfd, in versions of QEMU whose confidential
 * guests are left alone: no page is ever private
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/boards.h"
#include "qapi/error.h"
#include "system/guest-memfd.h"
#include "system/guest-memfd-compat.h"

bool guest_memfd_in_place(void)
{
    return false;
}

bool guest_memfd_cgs_check_backend(const char *type, Error **errp)
{
    if (current_machine->cgs) {
        error_setg(errp, "%s cannot be memory of a confidential guest; it "
                   "takes QEMU 10.2", type);
        return false;
    }
    return true;
}

void guest_memfd_ram_block_release(RAMBlock *rb)
{
}

void guest_memfd_state_init(GuestMemfd *gmem, bool can_be_private)
{
}

void guest_memfd_state_destroy(GuestMemfd *gmem)
{
}

void guest_memfd_access_init(void)
{
}

void guest_memfd_access_end(GuestMemfd *gmem)
{
}

bool guest_memfd_any_private(GuestMemfd *gmem, uint64_t offset, uint64_t size)
{
    return false;
}

uint64_t guest_memfd_private_runs(GuestMemfd *gmem)
{
    return 0;
}
