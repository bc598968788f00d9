/*
 * Differences between the QEMU versions this builds against
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_COMPAT_H
#define SYSTEM_GUEST_MEMFD_COMPAT_H

#include "migration/blocker.h"

/* QOMClassData: what a class_init function is passed. */
#if QEMU_VERSION_MAJOR > 10 || QEMU_VERSION_MINOR >= 1
#include "system/address-spaces.h"
#include "system/memory.h"
#include "system/ramblock.h"
typedef const void QOMClassData;
#else
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
typedef void QOMClassData;
#endif

/*
 * Block the migration modes in which RAM is handed to a new QEMU process by
 * its file descriptors.  Returns 0 or -errno; see migrate_add_blocker().
 */
static inline int guest_memfd_block_cpr(Error **reasonp, Error **errp)
{
#if QEMU_VERSION_MAJOR > 10 || QEMU_VERSION_MINOR >= 2
    return migrate_add_blocker_modes(reasonp, BIT(MIG_MODE_CPR_TRANSFER) |
                                     BIT(MIG_MODE_CPR_EXEC), errp);
#else
    return migrate_add_blocker_modes(reasonp, errp, MIG_MODE_CPR_TRANSFER, -1);
#endif
}

#endif
