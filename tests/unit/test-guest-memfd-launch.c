/*
 * Ranges that a launch in place takes, and refuses, and its records
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/units.h"
#include "system/address-spaces.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-launch.h"
#include "system/memory.h"
#include "system/ramblock.h"

#define PAGE (4 * KiB)
#define PAGES 16
#define GPA (1 * MiB)               /* of RAM; no RAM follows it */
#define ORDINARY (16 * MiB)         /* RAM that is always shared */

/* --- what the launch code calls --- */

static uint8_t memory[PAGES * PAGE] QEMU_ALIGNED(PAGE);
static MemoryRegion system_memory, ram = { .ram = true };
static RAMBlock block = { .mr = &ram, .host = memory,
                          .max_length = sizeof(memory) };
static unsigned long shared[1];
static GuestMemfd gmem = { .rb = &block };
static uint8_t ordinary_memory[PAGE] QEMU_ALIGNED(PAGE);
static MemoryRegion ordinary_ram = { .ram = true };
static RAMBlock ordinary_block = { .mr = &ordinary_ram,
                                   .host = ordinary_memory,
                                   .max_length = sizeof(ordinary_memory) };
static GuestMemfd ordinary = { .rb = &ordinary_block };
static GuestMemfds blocks = QTAILQ_HEAD_INITIALIZER(blocks);

static bool written[PAGES];
static bool has_cachestat = true;   /* has the kernel cachestat()? */
static int convert_error;
static unsigned conversions;
static struct {                     /* the last one */
    GuestMemfd *gmem;
    uint64_t offset;
    uint64_t size;
} converted;

MemoryRegion *get_system_memory(void)
{
    return &system_memory;
}

MemoryRegionSection memory_region_find(MemoryRegion *mr, hwaddr gpa,
                                       uint64_t size)
{
    MemoryRegionSection none = {}, s = {};
    hwaddr start = gpa < GPA + sizeof(memory) ? GPA : ORDINARY;
    hwaddr end = start + (start == GPA ? sizeof(memory) : PAGE);

    g_assert_true(mr == &system_memory);
    if (gpa + size <= start || gpa >= end) {
        return none;
    }
    s.mr = start == GPA ? &ram : &ordinary_ram;
    s.offset_within_address_space = MAX(gpa, start);
    s.offset_within_region = s.offset_within_address_space - start;
    s.size = int128_make64(MIN(gpa + size, end) -
                           s.offset_within_address_space);
    return s;
}

void *memory_region_get_ram_ptr(const MemoryRegion *mr)
{
    return mr == &ram ? memory : ordinary_memory;
}

void memory_region_unref(MemoryRegion *mr)
{
}

const char *memory_region_name(const MemoryRegion *mr)
{
    return "ram0";
}

const GuestMemfds *guest_memfd_list(void)
{
    return &blocks;
}

GuestMemfd *guest_memfd_from_host(const void *host)
{
    return (uintptr_t)host - (uintptr_t)memory < sizeof(memory) ? &gmem
                                                                : &ordinary;
}

bool guest_memfd_allocated(const GuestMemfd *g, uint64_t offset,
                           uint64_t size, uint64_t *bytes)
{
    uint64_t page;

    *bytes = 0;
    for (page = offset / PAGE; page < (offset + size) / PAGE; page++) {
        *bytes += written[page] ? PAGE : 0;
    }
    return has_cachestat;
}

bool guest_memfd_any_private(const GuestMemfd *g, uint64_t offset,
                             uint64_t size)
{
    return find_next_zero_bit(shared, (offset + size) / PAGE, offset / PAGE) <
           (offset + size) / PAGE;
}

void guest_memfd_state_launched(GuestMemfd *gmem)
{
    /* All pages are private. */
    g_assert_cmpuint(converted.size, ==, gmem->rb->max_length);
}

int guest_memfd_convert(GuestMemfd *g, uint64_t offset, uint64_t size,
                        bool to_private, const GuestMemfdRetry *retry,
                        uint64_t *done)
{
    /* No vCPU runs, so chunks are not needed. */
    g_assert_null(retry);
    g_assert_true(to_private);
    if (convert_error) {
        return convert_error;
    }
    conversions++;
    converted.gmem = g;
    converted.offset = offset;
    converted.size = size;
    bitmap_clear(shared, offset / PAGE, size / PAGE);
    return 0;
}

int guest_memfd_convert_all(GuestMemfd *g, bool to_private)
{
    uint64_t done;

    return guest_memfd_convert(g, 0, g->rb->max_length, to_private, NULL,
                               &done);
}

/* --- tests --- */

static unsigned launched(const GuestMemfdLaunchRange **last)
{
    const GuestMemfdLaunchRange *r;
    unsigned n = 0;

    QSIMPLEQ_FOREACH(r, guest_memfd_launch(), next) {
        *last = r;
        n++;
    }
    return n;
}

/* The call fails with that in its message, and changes nothing. */
static void refuse_range(hwaddr gpa, hwaddr size, const char *reason)
{
    const GuestMemfdLaunchRange *last = NULL;
    unsigned n = launched(&last), converted_before = conversions;
    Error *err = NULL;

    g_assert_false(guest_memfd_launch_range(gpa, size, "kind", true, true,
                                            &err));
    g_test_message("%s", error_get_pretty(err));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
    error_free(err);
    g_assert_cmpuint(launched(&last), ==, n);
    g_assert_cmpuint(conversions, ==, converted_before);
}

static void refuse(hwaddr gpa, hwaddr size, const char *reason)
{
    Error *err = NULL;

    refuse_range(gpa, size, reason);
    g_assert_null(guest_memfd_launch_host(gpa, size, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
    error_free(err);
}

static void write_pages(unsigned first, unsigned n)
{
    for (; n--; first++) {
        memset(memory + first * PAGE, first + 1, PAGE);
        written[first] = true;
    }
}

static void forget(void)
{
    memset(shared, 0xff, sizeof(shared));
    memset(written, 0, sizeof(written));
    memset(memory, 0, sizeof(memory));
    convert_error = 0;
    has_cachestat = true;
}

static void test_places(void)
{
    forget();
    write_pages(0, PAGES);
    refuse(GPA, 0, "whole pages");
    refuse(GPA + 1, PAGE, "whole pages");
    refuse(GPA, PAGE - 1, "whole pages");
    refuse(-PAGE, 2 * PAGE, "whole pages");
    refuse(GPA + sizeof(memory), PAGE, "not in one piece");
    refuse(GPA - PAGE, 2 * PAGE, "not in one piece");
    refuse(GPA + sizeof(memory) - PAGE, 2 * PAGE, "not in one piece");
    refuse(ORDINARY, PAGE, "not in one piece");
    ram.ram = false;
    refuse(GPA, PAGE, "not in one piece");
    ram.ram = true;
    g_assert_true(guest_memfd_launch_host(GPA + PAGE, 2 * PAGE, &error_abort)
                  == memory + PAGE);
}

static void check_last(unsigned first, unsigned n, const char *type,
                       bool measured)
{
    g_autofree char *text = NULL, *wanted = NULL;
    const GuestMemfdLaunchRange *r = NULL;

    launched(&r);
    g_assert_cmphex(r->gpa, ==, GPA + first * PAGE);
    g_assert_cmphex(r->size, ==, n * PAGE);
    g_assert_cmpstr(r->type, ==, type);
    g_assert_true(r->measured == measured);
    text = guest_memfd_launch_hex(r->digest);
    wanted = measured
             ? g_compute_checksum_for_data(G_CHECKSUM_SHA384,
                                           memory + first * PAGE, n * PAGE)
             : g_strnfill(2 * GUEST_MEMFD_DIGEST, '0');
    g_assert_cmpstr(text, ==, wanted);
}

static void test_ranges(void)
{
    const GuestMemfdLaunchRange *last;

    forget();
    write_pages(1, 3);
    guest_memfd_launch_range(GPA + PAGE, 3 * PAGE, "normal", true, true,
                             &error_abort);
    check_last(1, 3, "normal", true);
    g_assert_true(converted.gmem == &gmem);
    g_assert_cmphex(converted.offset, ==, PAGE);
    g_assert_cmphex(converted.size, ==, 3 * PAGE);

    /* Neighbours are no overlap, and unused pages may be absent. */
    guest_memfd_launch_range(GPA + 4 * PAGE, PAGE, "zero", false, false,
                             &error_abort);
    check_last(4, 1, "zero", false);
    guest_memfd_launch_range(GPA, PAGE, "zero", false, false, &error_abort);
    check_last(0, 1, "zero", false);
    g_assert_cmpuint(launched(&last), ==, 3);
}

/* Needs the ranges that test_ranges() has launched. */
static void test_no_page_twice(void)
{
    write_pages(5, 1);
    refuse(GPA + 3 * PAGE, PAGE, "(normal) are launched already");
    refuse(GPA + 4 * PAGE, 2 * PAGE, "(zero) are launched already");
    bitmap_clear(shared, 6, 1);
    refuse(GPA + 5 * PAGE, 2 * PAGE, "private already");
}

static void test_unwritten(void)
{
    write_pages(8, 1);
    refuse_range(GPA + 8 * PAGE, 2 * PAGE, "0x1000 of them were never written");
    g_assert_nonnull(guest_memfd_launch_host(GPA + 8 * PAGE, 2 * PAGE,
                                             &error_abort));
    has_cachestat = false;
    guest_memfd_launch_range(GPA + 8 * PAGE, 2 * PAGE, "normal", true, true,
                             &error_abort);
    has_cachestat = true;
}

/* With preallocation every page is there, whether it was written or not. */
static void test_empty(void)
{
    const GuestMemfdLaunchRange *last = NULL;
    unsigned n = launched(&last), before = conversions;
    Error *err = NULL;

    written[11] = written[12] = true;
    g_assert_false(guest_memfd_launch_check_contents(
        GPA + 11 * PAGE, 2 * PAGE, "normal", &err));
    g_assert_nonnull(strstr(error_get_pretty(err),
                            "0x2000 bytes at gpa 0x10b000 (normal): all"));
    error_free(err);
    memory[13 * PAGE - 1] = 1;
    g_assert_true(guest_memfd_launch_check_contents(
        GPA + 11 * PAGE, 2 * PAGE, "normal", &error_abort));
    g_assert_cmpuint(launched(&last), ==, n);
    g_assert_cmpuint(conversions, ==, before);
}

static void test_conversion_fails(void)
{
    write_pages(10, 1);
    convert_error = -EAGAIN;
    refuse_range(GPA + 10 * PAGE, PAGE, "pinned");
    convert_error = -ENOMEM;
    refuse_range(GPA + 10 * PAGE, PAGE, "Cannot allocate memory");
    convert_error = 0;
    guest_memfd_launch_range(GPA + 10 * PAGE, PAGE, "normal", true, true,
                             &error_abort);
    check_last(10, 1, "normal", true);
}

static void test_finish(void)
{
    Error *err = NULL;
    unsigned before;

    convert_error = -EAGAIN;
    g_assert_false(guest_memfd_launch_finish(&err));
    g_assert_nonnull(strstr(error_get_pretty(err), "'ram0'"));
    g_assert_nonnull(strstr(error_get_pretty(err), "pinned"));
    error_free(err);

    convert_error = 0;
    before = conversions;
    g_assert_true(guest_memfd_launch_finish(&error_abort));
    g_assert_cmpuint(conversions, ==, before + 1);
    g_assert_true(converted.gmem == &gmem);
    g_assert_cmphex(converted.offset, ==, 0);
    g_assert_cmphex(converted.size, ==, sizeof(memory));
}

static void test_measurement(void)
{
    uint8_t digest[GUEST_MEMFD_DIGEST] = { 0x0f, 0xf0 };
    LaunchMeasurement *m = g_new0(LaunchMeasurement, 1);

    m->type = LAUNCH_MEASUREMENT_TYPE_TDX;
    m->u.tdx.mrtd = guest_memfd_launch_hex(digest);
    g_assert_cmpuint(strlen(m->u.tdx.mrtd), ==, 96);
    g_assert_true(g_str_has_prefix(m->u.tdx.mrtd, "0ff000"));
    g_assert_null(guest_memfd_launch_measurement());
    guest_memfd_launch_measured(m);
    g_assert_true(guest_memfd_launch_measurement() == m);
    guest_memfd_launch_reset();
    g_assert_null(guest_memfd_launch_measurement());
}

int main(int argc, char **argv)
{
    gmem.state.shared = shared;
    QTAILQ_INSERT_TAIL(&blocks, &gmem, next);
    QTAILQ_INSERT_TAIL(&blocks, &ordinary, next);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/guest-memfd/launch/places", test_places);
    g_test_add_func("/guest-memfd/launch/ranges", test_ranges);
    g_test_add_func("/guest-memfd/launch/no-page-twice", test_no_page_twice);
    g_test_add_func("/guest-memfd/launch/unwritten", test_unwritten);
    g_test_add_func("/guest-memfd/launch/empty", test_empty);
    g_test_add_func("/guest-memfd/launch/conversion-fails",
                    test_conversion_fails);
    g_test_add_func("/guest-memfd/launch/finish", test_finish);
    g_test_add_func("/guest-memfd/launch/measurement", test_measurement);
    return g_test_run();
}
