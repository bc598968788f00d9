/*
 * RAM blocks that are a KVM guest_memfd: firmware and RAM of a confidential
 * guest before it runs
 *
 * All functions are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_LAUNCH_H
#define SYSTEM_GUEST_MEMFD_LAUNCH_H

#include "exec/hwaddr.h"
#include "qapi/qapi-types-guest-memfd.h"
#include "qemu/queue.h"

#define GUEST_MEMFD_DIGEST 48   /* bytes of a SHA-384 */

/**
 * GuestMemfdLaunchRange: what a launch gave to the platform
 * @gpa, @size: bytes
 * @type: the platform's name for this kind of page.  Static.
 * @measured: do the contents count?
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
 * @written: the contents matter, so every page must have been written
 * @measured: the contents count
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
 * guest_memfd_launch_measured: what the platform is expected to report
 * @m: taken over
 *
 * Called once, when all is populated.
 */
void guest_memfd_launch_measured(LaunchMeasurement *m);

/**
 * guest_memfd_launch_measurement: what guest_memfd_launch_measured() was given
 *
 * Returns: NULL before it is known.
 */
const LaunchMeasurement *guest_memfd_launch_measurement(void);

#endif
