/*
 * Launch of a confidential guest whose RAM is converted in place
 *
 * Until the guest runs, its firmware and what the firmware expects in RAM are
 * written through QEMU's mapping, at the addresses where the guest will find
 * them.  Then each range becomes private and the platform takes what is
 * there: no copy is made, and none is left behind.  At the end the rest of
 * RAM becomes private.  A range that is private cannot be read any more, so
 * what is to be known of its contents is computed before.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "crypto/hash.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "system/address-spaces.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-launch.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "gmem/trace.h"

static GuestMemfdLaunch launch = QSIMPLEQ_HEAD_INITIALIZER(launch);
static LaunchMeasurement *measurement;
static bool finished;

const GuestMemfdLaunch *guest_memfd_launch(void)
{
    return &launch;
}

const LaunchMeasurement *guest_memfd_launch_measurement(void)
{
    return measurement;
}

char *guest_memfd_launch_hex(const uint8_t digest[GUEST_MEMFD_DIGEST])
{
    GString *hex = g_string_sized_new(2 * GUEST_MEMFD_DIGEST);
    size_t i;

    for (i = 0; i < GUEST_MEMFD_DIGEST; i++) {
        g_string_append_printf(hex, "%02x", digest[i]);
    }
    return g_string_free(hex, false);
}

void guest_memfd_launch_measured(LaunchMeasurement *m)
{
    assert(!measurement);
    measurement = m;
    trace_guest_memfd_launch_measured(
        LaunchMeasurementType_str(m->type),
        m->type == LAUNCH_MEASUREMENT_TYPE_TDX ?
        m->u.tdx.mrtd : m->u.sev_snp.digest_after_vmsas);
}

bool guest_memfd_launch_digest(const void *data, size_t size,
                               uint8_t digest[GUEST_MEMFD_DIGEST],
                               Error **errp)
{
    size_t len = GUEST_MEMFD_DIGEST;

    return qcrypto_hash_bytes(QCRYPTO_HASH_ALGO_SHA384, data, size, &digest,
                              &len, errp) == 0;
}

/* @contents: NULL if they do not count.  Returns NULL on error. */
static GuestMemfdLaunchRange *new_range(hwaddr gpa, hwaddr size,
                                        const char *type, const void *contents,
                                        Error **errp)
{
    GuestMemfdLaunchRange *r = g_new0(GuestMemfdLaunchRange, 1);

    r->gpa = gpa;
    r->size = size;
    r->type = type;
    r->measured = contents;
    if (contents &&
        !guest_memfd_launch_digest(contents, size, r->digest, errp)) {
        g_free(r);
        return NULL;
    }
    return r;
}

bool guest_memfd_launch_note(hwaddr gpa, hwaddr size, const char *type,
                             const void *contents, Error **errp)
{
    GuestMemfdLaunchRange *r = new_range(gpa, size, type, contents, errp);

    if (!r) {
        return false;
    }
    QSIMPLEQ_INSERT_TAIL(&launch, r, next);
    return true;
}

/*
 * LaunchTarget: where in which block memory is
 * @offset, @size: bytes
 */
typedef struct LaunchTarget {
    GuestMemfd *gmem;
    uint64_t offset;
    uint64_t size;
} LaunchTarget;

/* Where in which block is the memory at @gpa?  False if not all in one. */
static bool find_range(hwaddr gpa, hwaddr size, LaunchTarget *range,
                       Error **errp)
{
    MemoryRegionSection section;
    uint8_t *host = NULL;

    if (!size || gpa + size < gpa ||
        !QEMU_IS_ALIGNED(gpa | size, qemu_real_host_page_size())) {
        error_setg(errp, "Cannot launch 0x%" HWADDR_PRIx " bytes at gpa 0x%"
                   HWADDR_PRIx ": the firmware has to name whole pages",
                   size, gpa);
        return false;
    }

    section = memory_region_find(get_system_memory(), gpa, size);
    if (section.mr && memory_region_is_ram(section.mr) &&
        section.offset_within_address_space == gpa &&
        int128_eq(section.size, int128_make64(size))) {
        host = (uint8_t *)memory_region_get_ram_ptr(section.mr) +
               section.offset_within_region;
    }
    if (section.mr) {
        memory_region_unref(section.mr);
    }

    range->gmem = host ? guest_memfd_from_host(host) : NULL;
    if (!range->gmem || !guest_memfd_can_be_private(range->gmem)) {
        error_setg(errp, "Cannot launch 0x%" HWADDR_PRIx " bytes at gpa 0x%"
                   HWADDR_PRIx " in place: they are not in one piece of RAM "
                   "that can be private; give the guest the memory that its "
                   "firmware expects", size, gpa);
        return false;
    }
    range->offset = host - range->gmem->rb->host;
    range->size = size;
    return true;
}

static bool check_is_shared(const LaunchTarget *range, hwaddr gpa,
                            Error **errp)
{
    const GuestMemfdLaunchRange *r;

    QSIMPLEQ_FOREACH(r, &launch, next) {
        if (r->gpa < gpa + range->size && gpa < r->gpa + r->size) {
            error_setg(errp, "Cannot launch 0x%" PRIx64 " bytes at gpa 0x%"
                       HWADDR_PRIx ": 0x%" PRIx64 " bytes at 0x%" PRIx64
                       " (%s) are launched already; the firmware must not "
                       "name a page twice", range->size, gpa, r->size, r->gpa,
                       r->type);
            return false;
        }
    }
    if (guest_memfd_any_private(range->gmem, range->offset, range->size)) {
        error_setg(errp, "Cannot launch 0x%" PRIx64 " bytes at gpa 0x%"
                   HWADDR_PRIx ": they are private already", range->size, gpa);
        return false;
    }
    return true;
}

void *guest_memfd_launch_host(hwaddr gpa, hwaddr size, Error **errp)
{
    LaunchTarget range;

    if (!find_range(gpa, size, &range, errp) ||
        !check_is_shared(&range, gpa, errp)) {
        return NULL;
    }
    return range.gmem->rb->host + range.offset;
}

bool guest_memfd_launch_check_contents(hwaddr gpa, hwaddr size,
                                       const char *type, Error **errp)
{
    const void *host = guest_memfd_launch_host(gpa, size, errp);

    if (!host) {
        return false;
    }
    if (buffer_is_zero(host, size)) {
        error_setg(errp, "Cannot launch 0x%" HWADDR_PRIx " bytes at gpa 0x%"
                   HWADDR_PRIx " (%s): all of them are zeros, and the guest "
                   "needs their contents; check the firmware image", size,
                   gpa, type);
        return false;
    }
    return true;
}

/*
 * The kernel would populate, and measure, a page that was never written: a
 * page of zeros that does not exist yet.  With preallocation each page exists,
 * so this finds nothing; guest_memfd_launch_check_contents() finds ranges that
 * are empty as a whole.  Single pages of a range may well be zeros.
 */
static bool check_written(const LaunchTarget *range, hwaddr gpa,
                          Error **errp)
{
    uint64_t bytes;

    if (guest_memfd_allocated(range->gmem, range->offset, range->size,
                              &bytes) && bytes < range->size) {
        error_setg(errp, "Cannot launch 0x%" PRIx64 " bytes at gpa 0x%"
                   HWADDR_PRIx ": 0x%" PRIx64 " of them were never written",
                   range->size, gpa, range->size - bytes);
        return false;
    }
    return true;
}

/* What to look for when a conversion has failed. */
static const char *pinned(int ret)
{
    return ret == -EAGAIN ? "; a device or its back end keeps a page pinned"
                          : "";
}

bool guest_memfd_launch_range(hwaddr gpa, hwaddr size, const char *type,
                              bool written, bool measured, Error **errp)
{
    GuestMemfdLaunchRange *r;
    LaunchTarget range;
    uint64_t done;
    void *host;
    int ret;

    if (!find_range(gpa, size, &range, errp) ||
        !check_is_shared(&range, gpa, errp) ||
        (written && !check_written(&range, gpa, errp))) {
        return false;
    }
    host = range.gmem->rb->host + range.offset;
    r = new_range(gpa, size, type, measured ? host : NULL, errp);
    if (!r) {
        return false;
    }

    ret = guest_memfd_convert(range.gmem, range.offset, range.size, true, NULL,
                              &done);
    trace_guest_memfd_launch_range(gpa, size, type, measured, ret);
    if (ret) {
        error_setg_errno(errp, -ret, "Cannot make 0x%" HWADDR_PRIx " bytes at "
                         "gpa 0x%" HWADDR_PRIx " private for the launch%s",
                         size, gpa, pinned(ret));
        g_free(r);
        return false;
    }
    QSIMPLEQ_INSERT_TAIL(&launch, r, next);
    return true;
}

void guest_memfd_launch_reset(void)
{
    GuestMemfdLaunchRange *r, *next;

    QSIMPLEQ_FOREACH_SAFE(r, &launch, next, next) {
        g_free(r);
    }
    QSIMPLEQ_INIT(&launch);
    g_clear_pointer(&measurement, qapi_free_LaunchMeasurement);
    finished = false;
}

bool guest_memfd_launch_is_finished(void)
{
    return finished;
}

bool guest_memfd_launch_finish(Error **errp)
{
    GuestMemfd *gmem;

    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        int ret;

        if (!guest_memfd_can_be_private(gmem)) {
            continue;
        }
        ret = guest_memfd_convert_all(gmem, true);
        trace_guest_memfd_launch_finish(gmem->inode, gmem->size, ret);
        if (ret) {
            error_setg_errno(errp, -ret, "Cannot make the RAM of '%s' private "
                             "to finish the launch%s",
                             memory_region_name(gmem->rb->mr), pinned(ret));
            return false;
        }
        guest_memfd_state_launched(gmem);
    }
    finished = true;
    return true;
}
