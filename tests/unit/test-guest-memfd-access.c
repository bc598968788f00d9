/*
 * Access to pages of a guest_memfd that may be private
 *
 * The file is an ordinary one.  A page that is private is one beyond its end:
 * its touch raises SIGBUS just the same.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include "qemu/aio.h"
#include "hw/core/cpu.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/guest-memfd-access.h"
#include "system/guest-memfd-events.h"
#include "system/kvm.h"
#include "system/memory-internal.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "system/runstate.h"
#include "system/system.h"

#define PAGES 4096

#define TYPE_TEST_REGION "test-region"

/* As many pages of a block are covered at most */
#define COVERED 64

static GuestMemfd gmem;
static GuestMemfds list = QTAILQ_HEAD_INITIALIZER(list);
static RAMBlock rb;
static MemoryRegion mr;
static uint64_t page_size;
static void *hardware_error;
static Notifier *machine_done;
static unsigned vm_stops;
static const MemoryRegionOps *hidden_ops;

/* Mappings of that kind fail, because the process has no room for more. */
static int no_room_for;

__thread CPUState *current_cpu;
const MemoryRegionOps unassigned_mem_ops;

/* Stand-ins */

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    if (no_room_for && (flags & no_room_for)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

int vm_stop(RunState state)
{
    g_assert_cmpint(state, ==, RUN_STATE_INTERNAL_ERROR);
    vm_stops++;
    return 0;
}

static unsigned events;
static uint64_t event_offset;

void guest_memfd_event_touched(const char *id, uint64_t offset,
                               uint64_t touched, uint64_t denied)
{
    g_assert_cmpstr(id, ==, "ram");
    event_offset = offset;
    events++;
}

bool guest_memfd_is_launching(void)
{
    return false;
}

GuestMemfd *guest_memfd_from_host(const void *host)
{
    return (uintptr_t)host - (uintptr_t)gmem.host < gmem.size ? &gmem : NULL;
}

const GuestMemfds *guest_memfd_list(void)
{
    return &list;
}

const char *memory_region_name(const MemoryRegion *region)
{
    return "ram";
}

void memory_region_init_io(MemoryRegion *region, Object *owner,
                           const MemoryRegionOps *ops, void *opaque,
                           const char *name, uint64_t size)
{
    g_assert_true(opaque == &gmem);
    object_initialize(region, sizeof(*region), TYPE_TEST_REGION);
    hidden_ops = ops;
    region->ops = ops;
    region->opaque = opaque;
}

void qemu_add_machine_init_done_notifier(Notifier *notify)
{
    machine_done = notify;
}

void memory_region_init_ram_ptr(MemoryRegion *region, Object *owner,
                                const char *name, uint64_t size, void *ptr)
{
    region->ram_block = g_new0(RAMBlock, 1);
    region->ram_block->host = ptr;
    region->ram_block->max_length = size;
}

/* What address_space_map() yields, and the region of that. */
static void *map_result;
static MemoryRegion *map_region;
static unsigned unmapped;

void *address_space_map(AddressSpace *as, hwaddr addr, hwaddr *plen,
                        bool is_write, MemTxAttrs attrs)
{
    *plen = 77;
    return map_result;
}

void address_space_unmap(AddressSpace *as, void *buffer, hwaddr len,
                         bool is_write, hwaddr access_len)
{
    g_assert_true(buffer == map_result);
    g_assert_cmpint(len, ==, 77);
    g_assert_cmpint(access_len, ==, 0);
    unmapped++;
}

MemoryRegion *memory_region_from_host(void *ptr, ram_addr_t *offset)
{
    g_assert_true(ptr == map_result);
    return map_region;
}

void memory_region_enable_lockless_io(MemoryRegion *region)
{
}

int kvm_on_sigbus(int code, void *addr)
{
    g_assert_cmpint(code, ==, BUS_MCEERR_AO);
    hardware_error = addr;
    return 0;
}

int monitor_vprintf(Monitor *mon, const char *fmt, va_list ap)
{
    return 0;
}

bool memory_region_is_ram_device(const MemoryRegion *region)
{
    return false;
}

Monitor *monitor_cur(void)
{
    return NULL;
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    if (!guest_memfd_on_sigbus(info->si_code, info->si_addr)) {
        _exit(99);
    }
}

/* The end of the file is page @n: what is behind it is private. */
static void set_shared(uint64_t n)
{
    g_assert_cmpint(ftruncate(rb.fd, n * page_size), ==, 0);
}

static void set_shown(uint64_t first, uint64_t n, bool shown)
{
    QEMU_LOCK_GUARD(&gmem.state.lock);
    if (shown) {
        g_assert_cmpint(guest_memfd_show(&gmem, first, first + n), ==, 0);
    } else {
        guest_memfd_hide(&gmem, first, first + n);
    }
}

static unsigned covered(void)
{
    unsigned page, n = 0;

    for (page = 0; page < PAGES; page++) {
        n += guest_memfd_is_covered(&gmem, page);
    }
    return n;
}

static uint64_t touched(void)
{
    return guest_memfd_access_counters(&gmem).touched;
}

static void main_loop(void)
{
    while (aio_poll(qemu_get_aio_context(), false)) {
        /* Until nothing is left. */
    }
}

/* volatile: each touch counts, whatever it yields */
static volatile uint8_t *at(uint64_t page)
{
    return (uint8_t *)gmem.host + page * page_size;
}

/* How many mappings the block consists of. */
static unsigned mappings(void)
{
    const uint64_t host = (uintptr_t)gmem.host;
    g_autofree char *maps = NULL;
    unsigned n = 0;
    const char *p;

    g_assert_true(g_file_get_contents("/proc/self/maps", &maps, NULL, NULL));
    for (p = maps; *p; p = strchr(p, '\n') + 1) {
        n += g_ascii_strtoull(p, NULL, 16) - host < gmem.size;
    }
    return n;
}

static void setup(void)
{
    struct sigaction action = {
        .sa_flags = SA_SIGINFO,
        .sa_sigaction = on_sigbus,
    };

    memset(&gmem, 0, sizeof(gmem));
    gmem.size = PAGES * page_size;
    gmem.rb = &rb;
    gmem.dump = true;
    rb.max_length = gmem.size;
    guest_memfd_state_init(&gmem, true);
    guest_memfd_access_init(&gmem);
    vm_stops = 0;
    rb.gmem = &gmem;
    rb.fd = memfd_create("test", MFD_CLOEXEC);
    set_shared(PAGES);
    mr.ram_block = &rb;
    rb.mr = &mr;
    gmem.host = mmap(NULL, gmem.size, PROT_READ | PROT_WRITE, MAP_SHARED,
                     rb.fd, 0);
    g_assert_true(gmem.host != MAP_FAILED);
    madvise(gmem.host, gmem.size, MADV_DONTFORK);
    madvise(gmem.host, gmem.size, MADV_HUGEPAGE);
    QTAILQ_INSERT_TAIL(&list, &gmem, next);
    sigaction(SIGBUS, &action, NULL);
}

static void teardown(void)
{
    QTAILQ_REMOVE(&list, &gmem, next);
    munmap(gmem.host, gmem.size);
    close(rb.fd);
    guest_memfd_access_destroy(&gmem);
    guest_memfd_state_destroy(&gmem);
    signal(SIGBUS, SIG_DFL);
}

/* The check */

static void expect_translated(uint64_t offset, uint64_t len, bool shown,
                              uint64_t wanted)
{
    MemoryRegion *to = guest_memfd_translated(&mr, offset, &len);

    g_assert_true((to == &mr) == shown);
    g_assert_cmphex(len, ==, wanted);
}

static void test_translation(void)
{
    const uint64_t p = page_size;
    uint64_t first, n, i;

    setup();
    expect_translated(5, 100, true, 100);
    expect_translated(0, UINT64_MAX, true, PAGES * p);
    expect_translated(PAGES * p + 5, 7, true, 7);
    expect_translated(5, 0, true, 0);
    for (i = 0; i < 200; i++) {
        first = 60 + i % 70;
        n = 1 + i;
        set_shown(first, n, false);
        /* Up to it, into it, all of it, beyond it. */
        expect_translated((first - 2) * p + 5, 2 * p - 5, true, 2 * p - 5);
        expect_translated((first - 2) * p + 5, 2 * p, true, 2 * p - 5);
        expect_translated((first - 1) * p, UINT64_MAX, true, p);
        expect_translated(first * p + 1, 1, false, 1);
        /* What is hidden is refused page by page. */
        expect_translated(first * p, n * p, false, p);
        expect_translated(first * p + 7, n * p, false, p - 7);
        expect_translated((first + n) * p - 1, 2, false, 1);
        expect_translated((first + n) * p, 2 * p, true, 2 * p);
        expect_translated(first * p, 0, false, 0);
        set_shown(first, n, true);
        expect_translated(0, 1000 * p, true, 1000 * p);
    }
    /* To look is no access. */
    g_assert_cmpint(guest_memfd_access_counters(&gmem).denied, ==, 0);
    teardown();
}

static void test_denied(void)
{
    MemoryRegion *hidden;
    uint64_t len = 1, data = 77;

    setup();
    set_shown(7, 1, false);
    hidden = guest_memfd_translated(&mr, 7 * page_size, &len);
    g_assert_true(guest_memfd_is_hidden_region(hidden));
    g_assert_false(guest_memfd_is_hidden_region(&mr));
    g_assert_cmpint(hidden_ops->read_with_attrs(hidden->opaque, 0, &data, 8,
                                                MEMTXATTRS_UNSPECIFIED),
                    ==, MEMTX_DECODE_ERROR);
    g_assert_cmpint(data, ==, 0);
    g_assert_cmpint(hidden_ops->write_with_attrs(hidden->opaque, 0, 5, 8,
                                                 MEMTXATTRS_UNSPECIFIED),
                    ==, MEMTX_DECODE_ERROR);
    g_assert_cmpint(guest_memfd_access_counters(&gmem).denied, ==, 2);
    teardown();
}

static bool changing;

static void *change_page(void *opaque)
{
    while (qatomic_read(&changing)) {
        set_shown(70, 1, false);
        set_shown(70, 1, true);
    }
    return NULL;
}

/* Of an access to it, something is translated each time. */
static void test_page_that_changes(void)
{
    QemuThread thread;
    unsigned i;

    setup();
    qatomic_set(&changing, true);
    qemu_thread_create(&thread, "change", change_page, NULL,
                       QEMU_THREAD_JOINABLE);
    for (i = 0; i < 1000000; i++) {
        uint64_t len = 2 * page_size;

        guest_memfd_translated(&mr, 70 * page_size, &len);
        g_assert_cmphex(len, >=, page_size);
        g_assert_cmphex(len, <=, 2 * page_size);
    }
    qatomic_set(&changing, false);
    qemu_thread_join(&thread);
    teardown();
}

static void expect_mapped(MemoryRegion *from, bool is_write, uint64_t offset,
                          uint64_t len, MemoryRegion *wanted)
{
    uint64_t at = offset, n = len;

    g_assert_true(guest_memfd_mapped(from, &at, &n, is_write) == wanted);
    g_assert_cmphex(at, ==, offset);
    g_assert_cmphex(n, ==, len);
}

static void test_mapped(void)
{
    MemoryRegion *none, *region[2];
    uint64_t offset, len = 1, size, i;

    setup();
    set_shown(0, 1, false);
    none = guest_memfd_translated(&mr, 0, &len);
    set_shown(0, 1, true);
    expect_mapped(&mr, true, 5 * page_size + 5, 100, &mr);
    /* Nobody has a machine that is complete, yet. */
    expect_mapped(none, true, 5 * page_size + 5, 100, none);
    machine_done->notify(machine_done, NULL);
    expect_mapped(&mr, true, 5 * page_size + 5, 100, &mr);
    for (i = 0; i < 2; i++) {
        offset = 5 * page_size + 5;
        len = 100;
        region[i] = guest_memfd_mapped(none, &offset, &len, i);
        g_assert_true(region[i] != none && region[i] != &mr);
        g_assert_cmphex(offset, ==, 5);
        g_assert_cmphex(len, ==, 100);
        size = region[i]->ram_block->max_length;
        g_assert_true(buffer_is_zero(region[i]->ram_block->host, size));
        len = UINT64_MAX;
        guest_memfd_mapped(none, &offset, &len, i);
        g_assert_cmphex(len, ==, size - 5);
    }
    /* What is written is not read. */
    g_assert_true(region[0] != region[1]);
    g_assert_true(region[0]->ram_block->host != region[1]->ram_block->host);

    /* vhost gets the guest's own memory or none. */
    map_result = &len;
    for (i = 0; i < 2; i++) {
        MemoryRegion *const foreign[] = { NULL, region[i] };
        unsigned k;

        map_region = &mr;
        g_assert_true(guest_memfd_map_shared(NULL, 0, &len, i) == &len);
        g_assert_cmphex(len, ==, 77);
        for (k = 0; k < 2; k++) {
            unmapped = 0;
            map_region = foreign[k];
            g_assert_null(guest_memfd_map_shared(NULL, 0, &len, i));
            g_assert_cmphex(len, ==, 0);
            g_assert_cmpint(unmapped, ==, 1);
        }
    }
    map_result = NULL;
    g_assert_null(guest_memfd_map_shared(NULL, 0, &len, true));
    g_assert_cmpint(unmapped, ==, 1);
    teardown();
}

/* Other RAM, MMIO, and guest_memfd of ordinary guests. */
static void test_others(void)
{
    MemoryRegion mmio = {}, other = {};
    RAMBlock block = {};
    uint64_t len = 7;

    setup();
    set_shown(0, PAGES, false);
    g_assert_true(guest_memfd_translated(&mmio, 5, &len) == &mmio);
    other.ram_block = &block;
    g_assert_true(guest_memfd_translated(&other, 5, &len) == &other);
    g_free(gmem.state.shared);
    gmem.state.shared = NULL;
    g_assert_true(guest_memfd_translated(&mr, 5, &len) == &mr);
    g_assert_cmpint(len, ==, 7);
    teardown();
}

/* Each access to a ring that can become private is translated. */
static void test_cache(void)
{
    MemoryRegion ordinary = { .ram = true };

    setup();
    g_assert_false(guest_memfd_cache_is_direct(&mr, false));
    g_assert_false(guest_memfd_cache_is_direct(&mr, true));
    g_assert_true(guest_memfd_cache_is_direct(&ordinary, false));
    g_assert_true(guest_memfd_cache_is_direct(&ordinary, true));
    ordinary.readonly = true;
    g_assert_false(guest_memfd_cache_is_direct(&ordinary, true));
    teardown();
}

/* Survival */

static void test_touch(void)
{
    setup();
    *at(5) = 1;
    *at(6) = 2;
    set_shown(5, 3, false);
    set_shared(5);
    errno = 77;
    g_assert_cmpint(*at(6), ==, 0);
    g_assert_cmpint(errno, ==, 77);
    *at(6) = 3;
    g_assert_cmpint(*at(6), ==, 3);
    *at(7) = 4;
    g_assert_cmpint(covered(), ==, 2);
    g_assert_cmpint(touched(), ==, 2);
    events = 0;
    main_loop();
    g_assert_cmpint(vm_stops, ==, 0);
    g_assert_cmpint(events, ==, 1);
    g_assert_cmphex(event_offset, ==, 7 * page_size);
    main_loop();
    g_assert_cmpint(events, ==, 1);

    set_shared(PAGES);
    *at(5) = 8;
    set_shown(5, 2, true);
    g_assert_cmpint(*at(5), ==, 8);
    g_assert_cmpint(*at(6), ==, 0);     /* what the file has there */
    g_assert_cmpint(covered(), ==, 1);
    set_shown(7, 1, true);
    *at(7) = 9;
    g_assert_cmpint(covered(), ==, 0);
    /* Nothing is left of it but one mapping. */
    g_assert_cmpint(mappings(), ==, 1);
    teardown();
}

/* Each covered page is a mapping, and these are few in number. */
static void test_many(void)
{
    unsigned page;

    setup();
    set_shown(0, PAGES, false);
    set_shared(0);
    for (page = 0; page < PAGES; page += 2) {
        g_assert_cmpint(*at(page), ==, 0);
        g_assert_cmpint(covered(), <=, COVERED);
        g_assert_true(guest_memfd_is_covered(&gmem, page));
    }
    g_assert_cmpint(mappings(), <=, 2 * COVERED + 1);
    g_assert_cmpint(touched(), ==, PAGES / 2);
    set_shared(PAGES);
    set_shown(0, PAGES, true);
    *at(PAGES - 2) = 1;
    g_assert_cmpint(mappings(), ==, 1);
    teardown();
}

/* A store across two pages */
static void straddle(unsigned page)
{
    /* volatile: as at() */
    *(volatile uint16_t *)(at(page) - 1) = 5;
}

/*
 * An instruction that touches several pages needs all of them at once, however
 * many are covered, and however little room there is.
 */
static void test_straddle(void)
{
    unsigned page, i;

    setup();
    set_shown(0, PAGES, false);
    set_shared(0);
    for (page = 0; page < 2 * COVERED; page += 2) {
        *at(page) = 1;
    }
    for (i = 0; i < 3 * COVERED; i++) {
        straddle(1000 + 3 * i);
        g_assert_true(guest_memfd_is_covered(&gmem, 999 + 3 * i));
        g_assert_true(guest_memfd_is_covered(&gmem, 1000 + 3 * i));
        g_assert_cmpint(covered(), ==, COVERED);
    }
    /* As many were covered as were touched: none was for nothing. */
    g_assert_cmpint(touched(), ==, COVERED + 2 * 3 * COVERED);
    teardown();
}

/* If there is no room for another mapping, the oldest page makes room. */
static void test_no_room(void)
{
    if (g_test_subprocess()) {
        unsigned page;

        setup();
        set_shown(0, PAGES, false);
        set_shared(0);
        for (page = 0; page < 20; page += 2) {
            *at(page) = 1;
        }
        no_room_for = MAP_ANONYMOUS;
        /* It gives up pages until it has too few, and then it gives up. */
        *at(100) = 1;
        exit(0);
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
}

/* A page that cannot be mapped again stays hidden. */
static void test_cannot_be_shown(void)
{
    setup();
    set_shown(5, 3, false);
    set_shared(5);
    *at(6) = 1;
    set_shared(PAGES);
    no_room_for = MAP_SHARED;
    WITH_QEMU_LOCK_GUARD(&gmem.state.lock) {
        g_assert_cmpint(guest_memfd_show(&gmem, 5, 8), ==, -ENOMEM);
    }
    no_room_for = 0;
    g_assert_true(guest_memfd_is_covered(&gmem, 6));
    g_assert_cmpint(guest_memfd_next_page(&gmem, 5, 8, true), ==, 8);
    set_shown(5, 3, true);
    *at(6) = 9;
    g_assert_cmpint(covered(), ==, 0);
    teardown();
}

#define THREADS 4
#define ROUNDS 3000

static unsigned left;

/* Devices write and read; nobody has anything to say about the values. */
static void *touch_all(void *opaque)
{
    unsigned i = 0;

    while (qatomic_read(&left)) {
        i = (i + 7) % 64;
        *at(i) = i;
        (void)*at(64 - i);
    }
    return NULL;
}

/* What is shared afterwards is the file, whoever touched it meanwhile. */
static void test_race(void)
{
    QemuThread threads[THREADS];
    unsigned i, page;

    setup();
    qatomic_set(&left, ROUNDS);
    for (i = 0; i < THREADS; i++) {
        qemu_thread_create(&threads[i], "touch", touch_all, NULL,
                           QEMU_THREAD_JOINABLE);
    }
    while (qatomic_fetch_dec(&left) > 1) {
        unsigned first = left % 64;

        set_shown(first, PAGES - first, false);
        set_shared(first);
        sched_yield();
        set_shared(PAGES);
        set_shown(first, PAGES - first, true);
        g_assert_cmpint(covered(), ==, 0);
    }
    for (i = 0; i < THREADS; i++) {
        qemu_thread_join(&threads[i]);
    }
    g_assert_cmpint(touched(), >, 0);
    for (page = 0; page <= 64; page++) {
        uint8_t value = 100 + page, seen;

        *at(page) = value;
        g_assert_cmpint(pread(rb.fd, &seen, 1, page * page_size), ==, 1);
        g_assert_cmpint(seen, ==, value);
    }
    teardown();
}

/* What is none of ours goes on to QEMU's own handler, which ends it. */
static void test_not_ours(void)
{
    if (g_test_subprocess()) {
        setup();
        gmem.size = 5 * page_size;
        set_shared(5);
        exit(*at(6));
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
}

/*
 * A page that another process has made private: the access sees zeros, and the
 * VM stops.
 */
static void test_foreign(void)
{
    setup();
    *at(6) = 1;
    set_shared(5);
    g_assert_cmpint(*at(6), ==, 0);
    g_assert_true(guest_memfd_is_covered(&gmem, 6));
    g_assert_true(guest_memfd_any_private(&gmem, 6 * page_size, 1));
    g_assert_false(guest_memfd_any_private(&gmem, 7 * page_size, 1));
    main_loop();
    g_assert_cmpint(vm_stops, ==, 1);
    main_loop();
    g_assert_cmpint(vm_stops, ==, 1);
    set_shared(PAGES);
    set_shown(6, 1, true);
    *at(6) = 3;
    teardown();
}

/* The main loop hears of errors of the hardware. */
static void test_hardware_error(void)
{
    setup();
    hardware_error = NULL;
    g_assert_true(guest_memfd_on_sigbus(BUS_MCEERR_AO, (void *)at(3)));
    g_assert_null(hardware_error);
    main_loop();
    g_assert_true(hardware_error == at(3));
    /* A vCPU's own are for KVM's handler. */
    current_cpu = (CPUState *)&mr;
    g_assert_false(guest_memfd_on_sigbus(BUS_MCEERR_AR, (void *)at(3)));
    g_assert_false(guest_memfd_on_sigbus(BUS_MCEERR_AO, (void *)at(3)));
    current_cpu = NULL;
    teardown();
}

static const TypeInfo region_info = {
    .name = TYPE_TEST_REGION,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(MemoryRegion),
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    page_size = qemu_real_host_page_size();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    type_register_static(&region_info);
    guest_memfd_some_hidden = true;
    g_test_add_func("/guest-memfd-access/translation", test_translation);
    g_test_add_func("/guest-memfd-access/denied", test_denied);
    g_test_add_func("/guest-memfd-access/mapped", test_mapped);
    g_test_add_func("/guest-memfd-access/others", test_others);
    g_test_add_func("/guest-memfd-access/cache", test_cache);
    g_test_add_func("/guest-memfd-access/page that changes",
                    test_page_that_changes);
    g_test_add_func("/guest-memfd-access/touch", test_touch);
    g_test_add_func("/guest-memfd-access/many", test_many);
    g_test_add_func("/guest-memfd-access/straddle", test_straddle);
    g_test_add_func("/guest-memfd-access/no room", test_no_room);
    g_test_add_func("/guest-memfd-access/cannot be shown",
                    test_cannot_be_shown);
    g_test_add_func("/guest-memfd-access/race", test_race);
    g_test_add_func("/guest-memfd-access/not-ours", test_not_ours);
    g_test_add_func("/guest-memfd-access/foreign", test_foreign);
    g_test_add_func("/guest-memfd-access/hardware-error", test_hardware_error);
    return g_test_run();
}
