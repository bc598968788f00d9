/*
 * RAM blocks that are a KVM guest_memfd: requests by guest physical address
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_GPA_H
#define SYSTEM_GUEST_MEMFD_GPA_H

#include "exec/hwaddr.h"
#include "gmem/system/guest-memfd-internal.h"

/**
 * guest_memfd_convert_gpa: make guest memory private or shared
 * @gpa, @size: bytes
 * @retry: as for guest_memfd_convert()
 * @done: set to the bytes, from @gpa on, that are now as requested
 *
 * Where there is no memory, "shared" is what it is, so that is no error.
 * Where private memory is separate, QEMU's own conversion is used.  A range
 * that is refused with -EINVAL by this function is not changed; any other
 * error does not undo what was converted before it.
 *
 * Needs no lock; see guest_memfd_convert().
 * Returns: as guest_memfd_convert(); -EINVAL if the range is empty, not
 * aligned to pages, wraps around, or if something in it cannot be private.
 */
int guest_memfd_convert_gpa(hwaddr gpa, hwaddr size, bool to_private,
                            const GuestMemfdRetry *retry, hwaddr *done);

/**
 * guest_memfd_gpa_differs: is a page in another state than that?
 * @gpa, @size: bytes
 *
 * Where there is no memory, "shared" is what it is.  Needs no lock.
 * Returns: 0 or 1, or -EINVAL as above.
 */
int guest_memfd_gpa_differs(hwaddr gpa, hwaddr size, bool private);

/**
 * guest_memfd_gpa_is_hidden: is memory there private, or about to be?
 *
 * In place.  One look-up; needs no lock.
 */
bool guest_memfd_gpa_is_hidden(hwaddr gpa);

#endif
