/*
 * Conversion of pages of a guest_memfd: rule by rule, and against a model
 *
 * The kernel, the BQL, the guest's address space and the clock are stand-ins
 * here.  What happens is written down as events:
 *
 *   -0a:5+2   listener a of block 0 hears that pages 5 and 6 go
 *   P0:5+2    the kernel makes them private
 *   S0:5+2    the kernel makes them shared
 *   +0a:5+2   listener a hears that they are there
 *
 * with "=ERROR" behind what fails.  At all times, no listener may have mapped
 * a page that becomes private, and nobody else may convert a page meanwhile.
 *
 * "prior art": a defect that prototypes of others had, by its number in the
 * project's notes on them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "monitor/monitor.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "monitor/monitor.h"
#include "system/address-spaces.h"
#include "system/guest-memfd.h"
#include "gmem/tests/include/test-discard-manager.h"
#include "system/kvm.h"
#include "system/memory-internal.h"
#include "system/memory.h"
#include "system/ramblock.h"

#define BLOCKS 3
#define PAGES 150
#define LISTENERS 3

/* Listener b has registered a part of the block only, c nothing at first. */
#define B_FIRST 40
#define B_PAGES 60

#define FOREVER UINT_MAX

/*
 * Listener: a device that maps what is shared
 * @mapped: a byte a page
 * @refused: a populate failed there, so it may be told of a discard in vain
 */
typedef struct Listener {
    RamDiscardListener rdl;
    MemoryRegionSection section;
    unsigned block;
    char name;
    uint8_t mapped[PAGES];
    uint8_t refused[PAGES];
} Listener;

/*
 * Block: a file, and what is known of its pages, a byte each
 * @private: to the kernel
 * @model: as it has to be
 * @attributes: of separate memory
 * @converting: by a thread that is in the kernel
 * @pins: so many conversions to private will find the page busy
 */
typedef struct Block {
    GuestMemfd gmem;
    RAMBlock rb;
    MemoryRegion mr;
    RamBlockAttributes attributes;
    TestManager manager;
    Listener listeners[LISTENERS];
    uint8_t private[PAGES];
    uint8_t model[PAGES];
    uint8_t converting[PAGES];
    unsigned pins[PAGES];
} Block;

/* Fault: the @at-th call and those behind it fail with @error */
typedef struct Fault {
    unsigned at;
    unsigned times;
    int error;
} Fault;

static Block blocks[BLOCKS];
static uint64_t page_size;

static QemuMutex kernel_lock;
static unsigned kernel_calls;
static Fault kernel_faults[2];
static void (*kernel_hook)(unsigned block, uint64_t first, bool private);
static unsigned populates;
static Fault populate_fault;
static __thread GRand *chaos;

static bool separate;
static uint64_t page_in_block(uint64_t gfn, RAMBlock **rb);
static unsigned bql_taken;

static GString *events;
static unsigned reports;

static int64_t now_us;
static int64_t tick_us;     /* of the clock, each time it is read */
static unsigned sleeps;
static int64_t longest_sleep;

static QemuMutex bql;
static __thread bool have_bql;
static void (*bql_unlock_hook)(void);

/* The clock */

gint64 g_get_monotonic_time(void)
{
    return qatomic_fetch_add(&now_us, tick_us);
}

void g_usleep(gulong us)
{
    qatomic_add(&now_us, us);
    qatomic_inc(&sleeps);
    if (us > qatomic_read(&longest_sleep)) {
        qatomic_set(&longest_sleep, us);
    }
    sched_yield();
}

/* The BQL */

bool bql_locked(void)
{
    return have_bql;
}

void bql_lock_impl(const char *file, int line)
{
    g_assert(!have_bql);
    qemu_mutex_lock(&bql);
    have_bql = true;
    bql_taken++;
}

void bql_unlock(void)
{
    g_assert(have_bql);
    have_bql = false;
    qemu_mutex_unlock(&bql);
    if (bql_unlock_hook) {
        bql_unlock_hook();
    }
}

void bql_block_unlock(bool increase)
{
}

bool mutex_is_bql(QemuMutex *mutex)
{
    return mutex == &bql;
}

void bql_update_status(bool locked)
{
}

void rust_bql_mock_lock(void)
{
}

/* Errors are counted. */

int monitor_vprintf(Monitor *mon, const char *fmt, va_list ap)
{
    g_autofree char *text = g_strdup_vprintf(fmt, ap);

    qatomic_set(&reports, qatomic_read(&reports) + !!strchr(text, '\n'));
    return strlen(text);
}

Monitor *monitor_cur(void)
{
    return NULL;
}

static void G_GNUC_PRINTF(1, 2) event(const char *fmt, ...)
{
    va_list ap;

    if (events) {
        va_start(ap, fmt);
        g_string_append(events, events->len ? " " : "");
        g_string_append_vprintf(events, fmt, ap);
        va_end(ap);
    }
}

static const char *error_name(int ret)
{
    switch (ret) {
    case 0:
        return "";
    case -EAGAIN:
        return "=EAGAIN";
    case -EINTR:
        return "=EINTR";
    case -ENOMEM:
        return "=ENOMEM";
    default:
        return "=ERROR";
    }
}

static int fault(const Fault *f, unsigned call)
{
    return f->at && call >= f->at && call - f->at < f->times ? -f->error : 0;
}

/* The kernel */

static int kernel_answer(Block *b, uint64_t first, uint64_t pages,
                         bool private, uint64_t *error_offset)
{
    unsigned call = ++kernel_calls;
    uint64_t page;
    int ret;

    ret = fault(&kernel_faults[0], call) ?: fault(&kernel_faults[1], call);
    if (!ret && chaos && g_rand_int_range(chaos, 0, 8) == 0) {
        ret = private && g_rand_boolean(chaos) ? -EAGAIN : -EINTR;
    }
    if (!ret && chaos && private && g_rand_int_range(chaos, 0, 20) == 0) {
        ret = -ENOMEM;
    }
    for (page = first; private && page < first + pages; page++) {
        unsigned i;

        for (i = 0; i < LISTENERS; i++) {
            g_assert_false(b->listeners[i].mapped[page]);
        }
        if (b->pins[page] && !ret) {
            b->pins[page] -= b->pins[page] != FOREVER;
            *error_offset = page * page_size;
            return -EAGAIN;
        }
    }
    if (ret == -EAGAIN) {
        *error_offset = first * page_size;
    }
    return ret;
}

int kvm_guest_memfd_set_private(int fd, uint64_t offset, uint64_t size,
                                bool private, uint64_t *error_offset)
{
    uint64_t first = offset / page_size;
    uint64_t pages = size / page_size;
    Block *b = &blocks[fd];
    int ret;

    g_assert_cmpint(fd, <, BLOCKS);
    g_assert_cmpint(offset % page_size, ==, 0);
    g_assert_cmpint(size % page_size, ==, 0);
    g_assert_cmpint(pages, >, 0);
    g_assert_cmpint(first + pages, <=, PAGES);

    WITH_QEMU_LOCK_GUARD(&kernel_lock) {
        g_assert_true(buffer_is_zero(b->converting + first, pages));
        memset(b->converting + first, 1, pages);
    }
    if (kernel_hook) {
        kernel_hook(fd, first, private);
    }
    WITH_QEMU_LOCK_GUARD(&kernel_lock) {
        ret = kernel_answer(b, first, pages, private, error_offset);
        if (!ret) {
            memset(b->private + first, private, pages);
        }
        memset(b->converting + first, 0, pages);
    }
    event("%c%d:%" PRIu64 "+%" PRIu64 "%s", private ? 'P' : 'S', fd, first,
          pages, error_name(ret));
    return ret;
}

/* Nobody here may free memory of a page (prior art 2). */

int ram_block_discard_range(RAMBlock *rb, uint64_t offset, size_t length)
{
    g_assert_not_reached();
}

int ram_block_discard_guest_memfd_range(RAMBlock *rb, uint64_t offset,
                                        size_t length)
{
    g_assert_not_reached();
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    g_assert_not_reached();
}

/* Listeners */

static Listener *section_of(RamDiscardListener *rdl,
                            const MemoryRegionSection *s, uint64_t *first,
                            uint64_t *pages)
{
    Listener *l = container_of(rdl, Listener, rdl);
    uint64_t size = int128_get64(s->size);

    g_assert_true(have_bql);
    g_assert_true(s->mr == l->section.mr);
    g_assert_cmpint(s->offset_within_region % page_size, ==, 0);
    g_assert_cmpint(size % page_size, ==, 0);
    *first = s->offset_within_region / page_size;
    *pages = size / page_size;
    g_assert_cmpint(*pages, >, 0);
    /* Within what was registered, at the address that belongs to it. */
    g_assert_cmpint(s->offset_within_region, >=,
                    l->section.offset_within_region);
    g_assert_cmpint(s->offset_within_region + size, <=,
                    l->section.offset_within_region +
                    int128_get64(l->section.size));
    g_assert_cmpint(s->offset_within_address_space - s->offset_within_region,
                    ==, l->section.offset_within_address_space -
                        l->section.offset_within_region);
    return l;
}

static int notify_populate(RamDiscardListener *rdl,
                           const MemoryRegionSection *s)
{
    uint64_t first, pages, page;
    Listener *l = section_of(rdl, s, &first, &pages);
    int ret = fault(&populate_fault, ++populates);

    if (!ret && chaos && g_rand_int_range(chaos, 0, 12) == 0) {
        ret = -ENOSPC;
    }
    event("+%u%c:%" PRIu64 "+%" PRIu64 "%s", l->block, l->name, first, pages,
          error_name(ret));
    QEMU_LOCK_GUARD(&kernel_lock);
    for (page = first; page < first + pages; page++) {
        g_assert_false(l->mapped[page]);
        g_assert_false(blocks[l->block].private[page]);
        l->mapped[page] = !ret;
        l->refused[page] = !!ret;
    }
    return ret;
}

static void notify_discard(RamDiscardListener *rdl,
                           const MemoryRegionSection *s)
{
    uint64_t first, pages, page;
    Listener *l = section_of(rdl, s, &first, &pages);

    event("-%u%c:%" PRIu64 "+%" PRIu64, l->block, l->name, first, pages);
    for (page = first; page < first + pages; page++) {
        g_assert_true(l->mapped[page] || l->refused[page]);
        l->mapped[page] = 0;
        l->refused[page] = 0;
    }
}

static void set_section(Listener *l, uint64_t first, uint64_t pages)
{
    l->section = (MemoryRegionSection) {
        .mr = &blocks[l->block].mr,
        .offset_within_region = first * page_size,
        .offset_within_address_space = (first + 1000) * page_size,
        .size = int128_make64(pages * page_size),
    };
    l->rdl.section = &l->section;
}

TestManager *test_manager_of(const GuestMemfd *gmem)
{
    return &container_of(gmem, Block, gmem)->manager;
}

static void listener_lost(RamDiscardListener *rdl, const MemoryRegionSection *s)
{
    uint64_t first, pages;
    Listener *l = section_of(rdl, s, &first, &pages);

    memset(l->refused + first, 1, pages);
}

static void register_listener(Listener *l)
{
    Block *b = &blocks[l->block];
    GuestMemfdState *s = &b->gmem.state;
    uint64_t page;

    g_assert_true(have_bql);
    test_manager_add(&b->manager, &l->rdl);
    for (page = 0; page < PAGES; page++) {
        QEMU_LOCK_GUARD(&s->lock);
        if (!s->launching && test_bit(page, s->shown)) {
            l->mapped[page] = 1;
        }
    }
}

static void unregister_listener(Listener *l)
{
    g_assert_true(have_bql);
    memset(l->mapped, 0, sizeof(l->mapped));
    memset(l->refused, 0, sizeof(l->refused));
    test_manager_remove(&blocks[l->block].manager, &l->rdl);
}

bool guest_memfd_is_launching(void)
{
    return false;
}

/* Blocks */

const char *memory_region_name(const MemoryRegion *mr)
{
    return "ram";
}

static uint8_t *host_of(unsigned block)
{
    return (uint8_t *)(uintptr_t)((block + 1) << 28);
}

bool guest_memfd_in_place(void)
{
    return !separate;
}

void guest_memfd_uncover(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    Block *b = container_of(gmem, Block, gmem);
    uint64_t page;

    /* It is shared, and nobody is sent there before it is mapped again. */
    for (page = first; page < end; page++) {
        g_assert_false(b->private[page]);
        g_assert_false(test_bit(page, gmem->state.shown));
    }
    event("U%d:%" PRIu64 "+%" PRIu64, (int)(b - blocks), first, end - first);
    gmem->state.covered_pages = 0;
}

/* What QEMU does where private memory is separate. */
int kvm_convert_memory(hwaddr start, hwaddr size, bool to_private)
{
    unsigned call = ++kernel_calls;
    int ret = fault(&kernel_faults[0], call) ?: fault(&kernel_faults[1], call);
    uint64_t first = start / page_size;
    uint64_t pages = size / page_size;
    uint64_t page;
    RAMBlock *rb;

    g_assert_true(have_bql);
    event("Q%" PRIu64 "+%" PRIu64 "%c%s", first, pages,
          to_private ? 'P' : 'S', error_name(ret));
    for (page = first; !ret && page < first + pages; page++) {
        uint64_t at = page_in_block(page, &rb);

        if (to_private) {
            clear_bit(at, rb->attributes->bitmap);
        } else {
            set_bit(at, rb->attributes->bitmap);
        }
    }
    return ret;
}

static void setup(void)
{
    unsigned i, k;

    memset(blocks, 0, sizeof(blocks));
    for (i = 0; i < BLOCKS; i++) {
        Block *b = &blocks[i];

        b->rb.fd = i;
        b->rb.mr = &b->mr;
        b->rb.host = host_of(i);
        b->rb.max_length = PAGES * page_size;
        b->rb.attributes = &b->attributes;
        b->rb.gmem = &b->gmem;
        b->mr.ram_block = &b->rb;
        b->gmem.rb = &b->rb;
        b->attributes.ram_block = &b->rb;
        b->attributes.bitmap_size = PAGES;
        b->attributes.bitmap = bitmap_new(PAGES);
        bitmap_set(b->attributes.bitmap, 0, PAGES);
        b->manager.lost = listener_lost;
        for (k = LISTENERS; k-- > 0; ) {
            Listener *l = &b->listeners[k];

            l->block = i;
            l->name = 'a' + k;
            set_section(l, k == 1 ? B_FIRST : 0, k == 1 ? B_PAGES : PAGES);
            ram_discard_listener_init(&l->rdl, notify_populate,
                                      notify_discard);
            if (k < 2) {
                test_manager_add(&b->manager, &l->rdl);
                memset(l->mapped + (k ? B_FIRST : 0), 1,
                       k ? B_PAGES : PAGES);
            }
        }
        guest_memfd_state_init(&b->gmem, true);
    }
    kernel_calls = 0;
    memset(kernel_faults, 0, sizeof(kernel_faults));
    kernel_hook = NULL;
    populates = 0;
    populate_fault = (Fault) {};
    reports = 0;
    now_us = 1000;
    tick_us = 0;
    sleeps = 0;
    longest_sleep = 0;
    bql_unlock_hook = NULL;
    bql_taken = 0;
    separate = false;
    events = g_string_new("");
}

static bool is_registered(const Listener *l)
{
    return l->rdl.next.le_prev;
}

/*
 * Nothing is under way.  The state that is kept, the kernel's, the model's
 * and the listeners' must be the same.
 */
static void check(void)
{
    unsigned i, k;

    g_assert_false(have_bql);
    for (i = 0; i < BLOCKS; i++) {
        Block *b = &blocks[i];
        GuestMemfdState *s = &b->gmem.state;
        uint64_t page, private = 0, runs = 0;

        for (page = 0; page < PAGES; page++) {
            bool is_private = test_bit(page, s->private);

            g_assert_cmpint(is_private, ==, b->private[page]);
            g_assert_cmpint(is_private, ==, b->model[page]);
            g_assert_cmpint(is_private, !=, test_bit(page, s->shown));
            g_assert_cmpint(is_private, ==,
                            guest_memfd_any_private(&b->gmem,
                                                    page * page_size + 1, 1));
            private += is_private;
            runs += is_private && !(page && test_bit(page - 1, s->private));
            for (k = 0; k < LISTENERS; k++) {
                Listener *l = &b->listeners[k];
                bool hears = is_registered(l) &&
                             (k != 1 || (page >= B_FIRST &&
                                         page < B_FIRST + B_PAGES));

                g_assert_cmpint(l->mapped[page], ==,
                                hears && !is_private && !l->refused[page]);
            }
        }
        g_assert_cmpint(s->private_pages, ==, private);
        g_assert_cmpint(s->to_private - s->to_shared, ==, private);
        g_assert_cmpint(guest_memfd_private_runs(&b->gmem), ==, runs);
    }
}

static void teardown(void)
{
    unsigned i;

    check();
    for (i = 0; i < BLOCKS; i++) {
        guest_memfd_state_destroy(&blocks[i].gmem);
        g_free(blocks[i].attributes.bitmap);
    }
    if (events) {
        g_string_free(events, true);
        events = NULL;
    }
}

static GuestMemfdRange range(unsigned block, uint64_t first, uint64_t pages)
{
    return (GuestMemfdRange) { &blocks[block].gmem, first * page_size,
                               pages * page_size };
}

static int convert(unsigned block, uint64_t first, uint64_t pages,
                   bool private)
{
    GuestMemfdRange r = range(block, first, pages);

    return guest_memfd_convert(&r, 1, private);
}

static void model(unsigned block, uint64_t first, uint64_t pages, bool private)
{
    memset(blocks[block].model + first, private, pages);
}

/* What the kernel has done is right. */
static void sync_model(void)
{
    unsigned i;

    for (i = 0; i < BLOCKS; i++) {
        memcpy(blocks[i].model, blocks[i].private, PAGES);
    }
}

/* Pages that are private before a test begins. */
static void given(unsigned block, uint64_t first, uint64_t pages)
{
    g_assert_cmpint(convert(block, first, pages, true), ==, 0);
    model(block, first, pages, true);
    g_string_truncate(events, 0);
    kernel_calls = 0;
    populates = 0;
}

static void expect(const char *wanted)
{
    g_assert_cmpstr(events->str, ==, wanted);
    g_string_truncate(events, 0);
}

static void fail_call(unsigned at, int error, unsigned times)
{
    unsigned i = kernel_faults[0].at ? 1 : 0;

    kernel_faults[i] = (Fault) { at, times, error };
}

/* What is done, and in which order */

static void test_begins_shared(void)
{
    unsigned i;

    setup();
    for (i = 0; i < BLOCKS; i++) {
        g_assert_cmpint(blocks[i].gmem.state.pages, ==, PAGES);
        g_assert_false(guest_memfd_any_private(&blocks[i].gmem, 0,
                                               UINT64_MAX));
    }
    g_assert_cmpint(kernel_calls, ==, 0);
    teardown();
}

static void test_to_private(void)
{
    setup();
    g_assert_cmpint(convert(0, 5, 4, true), ==, 0);
    model(0, 5, 4, true);
    expect("-0a:5+4 P0:5+4");
    teardown();
}

static void test_to_shared(void)
{
    setup();
    given(0, 5, 4);
    g_assert_cmpint(convert(0, 5, 4, false), ==, 0);
    model(0, 5, 4, false);
    expect("S0:5+4 +0a:5+4");
    teardown();
}

static void test_nothing_to_do(void)
{
    setup();
    g_assert_cmpint(convert(0, 0, PAGES, false), ==, 0);
    expect("");
    given(0, 5, 4);
    g_assert_cmpint(convert(0, 5, 4, true), ==, 0);
    g_assert_cmpint(convert(0, 6, 2, true), ==, 0);
    expect("");
    g_assert_cmpint(convert(0, 7, 0, true), ==, 0);
    g_assert_cmpint(guest_memfd_convert(NULL, 0, true), ==, 0);
    expect("");
    teardown();
}

static void test_runs(void)
{
    setup();
    given(0, 2, 2);
    given(0, 6, 1);
    g_assert_cmpint(convert(0, 0, 10, true), ==, 0);
    model(0, 0, 10, true);
    expect("-0a:0+2 -0a:4+2 -0a:7+3 P0:0+2 P0:4+2 P0:7+3");
    g_assert_cmpint(convert(0, 4, 1, false), ==, 0);
    expect("S0:4+1 +0a:4+1");
    g_assert_cmpint(convert(0, 1, 8, false), ==, 0);
    model(0, 1, 8, false);
    expect("S0:1+3 S0:5+4 +0a:1+3 +0a:5+4");
    teardown();
}

static void test_sections(void)
{
    setup();
    g_assert_cmpint(convert(0, 30, 20, true), ==, 0);
    model(0, 30, 20, true);
    expect("-0a:30+20 -0b:40+10 P0:30+20");
    g_assert_cmpint(convert(0, 0, PAGES, false), ==, 0);
    model(0, 30, 20, false);
    expect("S0:30+20 +0a:30+20 +0b:40+10");
    teardown();
}

static void test_several_blocks(void)
{
    GuestMemfdRange r[] = { range(2, 1, 2), range(0, 8, 2), range(0, 1, 3) };

    setup();

    g_assert_cmpint(guest_memfd_convert(r, 3, true), ==, 0);
    model(2, 1, 2, true);
    model(0, 8, 2, true);
    model(0, 1, 3, true);
    expect("-0a:1+3 -0a:8+2 -2a:1+2 P0:1+3 P0:8+2 P2:1+2");
    teardown();
}

static void test_overlap(void)
{
    GuestMemfdRange r[] = { range(0, 3, 4), range(0, 1, 4), range(0, 3, 4),
                            range(0, 2, 1), range(0, 7, 1) };

    setup();

    g_assert_cmpint(guest_memfd_convert(r, 5, true), ==, 0);
    model(0, 1, 7, true);
    expect("-0a:1+7 P0:1+7");
    teardown();
}

static void test_bad_ranges(void)
{
    GuestMemfdRange good = range(0, 0, 1);
    GuestMemfdRange bad[] = {
        range(1, PAGES, 1), range(1, 0, PAGES + 1), range(1, PAGES + 1, 0),
        { &blocks[1].gmem, 1, page_size }, { &blocks[1].gmem, 0, 1 },
        { &blocks[1].gmem, page_size, -page_size },
        { &blocks[1].gmem, -page_size, 2 * page_size },
    };
    unsigned i;

    setup();
    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        GuestMemfdRange r[] = { good, bad[i] };

        g_assert_cmpint(guest_memfd_convert(r, 2, true), ==, -EINVAL);
        g_assert_cmpint(guest_memfd_convert(r, 2, false), ==, -EINVAL);
    }
    expect("");
    teardown();
}

static void test_no_private_memory(void)
{
    GuestMemfd plain = { .rb = &blocks[0].rb };
    GuestMemfdRange r = { &plain, 0, page_size };

    setup();
    guest_memfd_state_init(&plain, false);
    g_assert_cmpint(guest_memfd_convert(&r, 1, true), ==, -EINVAL);
    g_assert_cmpint(guest_memfd_convert(&r, 1, false), ==, 0);
    g_assert_false(guest_memfd_any_private(&plain, 0, page_size));
    g_assert_cmpint(guest_memfd_private_runs(&plain), ==, 0);
    guest_memfd_state_destroy(&plain);
    expect("");
    teardown();
}

static void test_queries(void)
{
    GuestMemfd *gmem = &blocks[0].gmem;
    uint64_t end = PAGES * page_size;

    setup();
    given(0, 62, 4);
    given(0, 127, 2);
    given(0, PAGES - 1, 1);
    g_assert_cmpint(guest_memfd_private_runs(gmem), ==, 3);
    g_assert_false(guest_memfd_any_private(gmem, 0, 62 * page_size));
    g_assert_true(guest_memfd_any_private(gmem, 0, 62 * page_size + 1));
    g_assert_true(guest_memfd_any_private(gmem, 66 * page_size - 1, 1));
    g_assert_false(guest_memfd_any_private(gmem, 66 * page_size, page_size));
    g_assert_false(guest_memfd_any_private(gmem, 62 * page_size, 0));
    g_assert_true(guest_memfd_any_private(gmem, end - 1, 1));
    g_assert_true(guest_memfd_any_private(gmem, 100 * page_size,
                                          UINT64_MAX));
    g_assert_false(guest_memfd_any_private(gmem, end, page_size));
    g_assert_false(guest_memfd_any_private(gmem, UINT64_MAX, 1));
    g_assert_true(guest_memfd_any_private(gmem, 0, UINT64_MAX));
    teardown();
}

/* Pages that somebody holds */

static void test_busy_for_a_moment(void)
{
    setup();
    blocks[0].pins[6] = 2;
    g_assert_cmpint(convert(0, 5, 4, true), ==, 0);
    model(0, 5, 4, true);
    expect("-0a:5+4 P0:5+4=EAGAIN P0:5+4=EAGAIN P0:5+4");
    g_assert_cmpint(sleeps, ==, 2);
    g_assert_cmpint(now_us, ==, 1000 + 50 + 100);
    g_assert_cmpint(blocks[0].gmem.state.busy, ==, 2);
    teardown();
}

static void test_busy_for_ever(void)
{
    setup();
    given(0, 8, 1);
    blocks[0].pins[5] = FOREVER;
    g_assert_cmpint(convert(0, 5, 7, true), ==, -EAGAIN);
    g_assert_true(g_str_has_prefix(events->str, "-0a:5+3 -0a:9+3 P0:5+3="));
    g_assert_true(g_str_has_suffix(events->str,
                                   "P0:5+3=EAGAIN +0a:5+3 +0a:9+3"));
    g_string_truncate(events, 0);
    /* A second, some hundred calls at most, and the last one at its end. */
    g_assert_cmpint(now_us, ==, 1000 + 1000000);
    g_assert_cmpint(kernel_calls, <, 200);
    g_assert_cmpint(kernel_calls, ==, sleeps + 1);
    g_assert_cmpint(longest_sleep, ==, 10000);
    g_assert_cmpint(blocks[0].gmem.state.busy, ==, kernel_calls);
    teardown();
}

static void test_second_begins_anew(void)
{
    GuestMemfdRange r[] = { range(0, 5, 1), range(1, 5, 1) };

    setup();

    blocks[0].pins[5] = 50;
    blocks[1].pins[5] = FOREVER;
    g_assert_cmpint(guest_memfd_convert(r, 2, true), ==, -EAGAIN);
    /* After what the first page took. */
    g_assert_cmpint(now_us, ==, 1000 + 432750 + 1000000);
    teardown();
}

static void test_split(void)
{
    setup();
    blocks[0].pins[7] = 4;
    blocks[0].pins[9] = 1;
    g_assert_cmpint(convert(0, 4, 8, true), ==, 0);
    model(0, 4, 8, true);
    expect("-0a:4+8 P0:4+8=EAGAIN P0:4+8=EAGAIN P0:4+8=EAGAIN P0:4+3 "
           "P0:7+5=EAGAIN P0:7+5=EAGAIN P0:7+2 P0:9+3");
    teardown();
}

static void test_split_undone(void)
{
    setup();
    blocks[0].pins[7] = FOREVER;
    g_assert_cmpint(convert(0, 4, 8, true), ==, -EAGAIN);
    g_assert_true(strstr(events->str, " P0:4+3 P0:7+5=EAGAIN"));
    g_assert_true(g_str_has_suffix(events->str,
                                   "P0:7+5=EAGAIN S0:4+3 +0a:4+8"));
    teardown();
}

static void test_nonsense_offset(void)
{
    setup();
    /* Says that it is the first page. */
    fail_call(1, EAGAIN, 5);
    g_assert_cmpint(convert(0, 4, 8, true), ==, 0);
    model(0, 4, 8, true);
    g_assert_cmpint(kernel_calls, ==, 6);
    teardown();
}

static void test_interrupted(void)
{
    setup();
    fail_call(1, EINTR, 3);
    g_assert_cmpint(convert(0, 4, 1, true), ==, 0);
    model(0, 4, 1, true);
    expect("-0a:4+1 P0:4+1=EINTR P0:4+1=EINTR P0:4+1=EINTR P0:4+1");
    g_assert_cmpint(sleeps, ==, 0);
    g_assert_cmpint(blocks[0].gmem.state.busy, ==, 0);
    teardown();
}

static void test_interrupted_for_ever(void)
{
    setup();
    tick_us = 10000;
    fail_call(1, EINTR, 200);
    g_assert_cmpint(convert(0, 4, 1, true), ==, -EAGAIN);
    g_assert_cmpint(kernel_calls, ==, 101);
    g_assert_true(g_str_has_suffix(events->str, "P0:4+1=EINTR +0a:4+1"));
    teardown();
}

/* All or nothing */

static void test_error_at_once(void)
{
    setup();
    fail_call(1, ENOMEM, 1);
    g_assert_cmpint(convert(0, 4, 2, true), ==, -ENOMEM);
    expect("-0a:4+2 P0:4+2=ENOMEM +0a:4+2");
    g_assert_cmpint(sleeps, ==, 0);
    given(0, 4, 2);
    fail_call(1, ENOMEM, 1);
    g_assert_cmpint(convert(0, 4, 2, false), ==, -ENOMEM);
    expect("S0:4+2=ENOMEM");
    teardown();
}

static void test_other_block_fails(void)
{
    GuestMemfdRange r[] = { range(0, 1, 3), range(1, 45, 2) };

    setup();
    given(0, 2, 1);

    fail_call(3, ENOMEM, 1);
    g_assert_cmpint(guest_memfd_convert(r, 2, true), ==, -ENOMEM);
    expect("-0a:1+1 -0a:3+1 -1a:45+2 -1b:45+2 "
           "P0:1+1 P0:3+1 P1:45+2=ENOMEM S0:1+1 S0:3+1 "
           "+0a:1+1 +0a:3+1 +1a:45+2 +1b:45+2");
    g_assert_cmpint(reports, ==, 0);
    teardown();
}

static void test_other_block_fails_shared(void)
{
    GuestMemfdRange r[] = { range(0, 1, 3), range(1, 6, 4) };

    setup();
    given(0, 2, 1);
    given(1, 7, 1);

    fail_call(2, ENOMEM, 1);
    g_assert_cmpint(guest_memfd_convert(r, 2, false), ==, -ENOMEM);
    expect("S0:2+1 S1:7+1=ENOMEM P0:2+1");
    teardown();
}

static void test_undo_refused(void)
{
    GuestMemfdRange r[] = { range(0, 1, 1), range(0, 3, 1), range(1, 5, 1) };

    setup();

    fail_call(3, ENOMEM, 1);
    fail_call(4, ENOMEM, 1);
    g_assert_cmpint(guest_memfd_convert(r, 3, true), ==, -ENOMEM);
    model(0, 1, 1, true);
    expect("-0a:1+1 -0a:3+1 -1a:5+1 P0:1+1 P0:3+1 P1:5+1=ENOMEM "
           "S0:1+1=ENOMEM S0:3+1 +0a:3+1 +1a:5+1");
    g_assert_cmpint(reports, ==, 1);
    teardown();
}

/* A guest may be able to bring it about again and again. */
static void test_complains_once(void)
{
    GuestMemfdRange r[] = { range(0, 1, 1), range(0, 3, 1), range(1, 5, 1) };

    setup();
    fail_call(3, ENOMEM, 3);
    g_assert_cmpint(guest_memfd_convert(r, 3, true), ==, -ENOMEM);
    model(0, 1, 1, true);
    model(0, 3, 1, true);
    expect("-0a:1+1 -0a:3+1 -1a:5+1 P0:1+1 P0:3+1 P1:5+1=ENOMEM "
           "S0:1+1=ENOMEM S0:3+1=ENOMEM +1a:5+1");
    g_assert_cmpint(reports, ==, 1);
    teardown();
}

static void test_listener_refuses(void)
{
    setup();
    given(0, 45, 2);
    populate_fault = (Fault) { 2, 1, ENOSPC };
    g_assert_cmpint(convert(0, 45, 2, false), ==, -ENOSPC);
    expect("S0:45+2 +0a:45+2 +0b:45+2=ERROR -0a:45+2 -0b:45+2 P0:45+2");
    g_assert_cmpint(reports, ==, 0);
    teardown();
}

static void test_listener_refuses_late(void)
{
    GuestMemfdRange r[] = { range(0, 0, 5), range(1, 30, 30) };

    setup();
    given(0, 2, 1);
    given(1, 39, 2);
    given(1, 45, 1);
    given(1, 50, 1);

    populate_fault = (Fault) { 5, 1, ENOSPC };
    g_assert_cmpint(guest_memfd_convert(r, 2, false), ==, -ENOSPC);
    expect("S0:2+1 S1:39+2 S1:45+1 S1:50+1 "
           "+0a:2+1 +1a:39+2 +1b:40+1 +1a:45+1 +1b:45+1=ERROR "
           "-1a:45+1 -1b:45+1 "
           "-0a:2+1 -1a:39+2 -1b:40+1 "
           "P0:2+1 P1:39+2 P1:45+1 P1:50+1");
    teardown();
}

static void test_listener_refuses_and_page_is_held(void)
{
    setup();
    given(0, 5, 1);
    given(0, 7, 1);
    blocks[0].pins[5] = FOREVER;
    populate_fault = (Fault) { 2, 1, ENOSPC };
    g_assert_cmpint(convert(0, 5, 3, false), ==, -ENOSPC);
    model(0, 5, 1, false);
    g_assert_true(g_str_has_suffix(events->str,
                                   "P0:5+1=EAGAIN P0:7+1 +0a:5+1"));
    g_assert_cmpint(now_us, ==, 1000 + 1000000);
    g_assert_cmpint(reports, ==, 1);
    teardown();
}

static void test_listener_fails_again(void)
{
    setup();
    fail_call(1, ENOMEM, 1);
    populate_fault = (Fault) { 1, 1, ENOSPC };
    g_assert_cmpint(convert(0, 45, 2, true), ==, -ENOMEM);
    expect("-0a:45+2 -0b:45+2 P0:45+2=ENOMEM +0a:45+2=ERROR -0a:45+2");
    g_assert_cmpint(reports, ==, 1);
    teardown();
}

/* Locks, and others meanwhile */

static bool hook_had_bql;

static void look_at_bql(unsigned block, uint64_t first, bool private)
{
    hook_had_bql = have_bql;
}

static void test_bql(void)
{
    bool private;

    setup();
    kernel_hook = look_at_bql;
    for (private = true; ; private = false) {
        g_assert_cmpint(convert(0, 1, 1, private), ==, 0);
        g_assert_false(hook_had_bql);
        g_assert_false(have_bql);

        bql_lock();
        g_assert_cmpint(convert(0, 2, 1, private), ==, 0);
        g_assert_true(hook_had_bql);
        g_assert_true(have_bql);
        bql_unlock();
        if (!private) {
            break;
        }
    }
    teardown();
}

static void register_c(unsigned block, uint64_t first, bool private)
{
    Listener *l = &blocks[block].listeners[2];

    if (!is_registered(l)) {
        bql_lock();
        register_listener(l);
        bql_unlock();
    }
}

static void test_listener_comes(void)
{
    Listener *l = &blocks[0].listeners[2];

    setup();
    kernel_hook = register_c;
    g_assert_cmpint(convert(0, 5, 4, true), ==, 0);
    model(0, 5, 4, true);
    expect("-0a:5+4 P0:5+4");
    bql_lock();
    unregister_listener(l);
    bql_unlock();
    g_assert_cmpint(convert(0, 4, 3, false), ==, 0);
    model(0, 4, 3, false);
    expect("S0:5+2 +0c:5+2 +0a:5+2");
    /* And if the conversion that it came into fails, it hears of that. */
    bql_lock();
    unregister_listener(l);
    bql_unlock();
    kernel_calls = 0;
    fail_call(1, ENOMEM, 1);
    g_assert_cmpint(convert(0, 20, 1, true), ==, -ENOMEM);
    expect("-0a:20+1 P0:20+1=ENOMEM +0c:20+1 +0a:20+1");
    teardown();
}

static QemuSemaphore inside, leave;

/* The first to come stays in the kernel until it may go. */
static void stay_inside(unsigned block, uint64_t first, bool private)
{
    kernel_hook = NULL;
    qemu_sem_post(&inside);
    qemu_sem_wait(&leave);
}

static void *convert_block_1(void *opaque)
{
    g_assert_cmpint(convert(1, 3, 4, true), ==, 0);
    return NULL;
}

static void let_go(void)
{
    bql_unlock_hook = NULL;
    qemu_sem_post(&leave);
}

static void start_inside(QemuThread *thread)
{
    qemu_sem_init(&inside, 0);
    qemu_sem_init(&leave, 0);
    g_string_free(events, true);
    events = NULL;
    kernel_hook = stay_inside;
    qemu_thread_create(thread, "inside", convert_block_1, NULL,
                       QEMU_THREAD_JOINABLE);
    qemu_sem_wait(&inside);
}

static void end_inside(QemuThread *thread)
{
    qemu_thread_join(thread);
    qemu_sem_destroy(&inside);
    qemu_sem_destroy(&leave);
}

/* One page in common is enough, on either side. */
static void test_waits_without_bql(void)
{
    static const struct {
        uint64_t first;
        uint64_t left;
    } cases[] = { { 0, 4 }, { 6, 3 } };
    QemuThread thread;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        setup();
        start_inside(&thread);
        bql_lock();
        bql_unlock_hook = let_go;
        g_assert_cmpint(convert(1, cases[i].first, 4, false), ==, 0);
        g_assert_true(have_bql);
        bql_unlock();
        end_inside(&thread);
        model(1, cases[i].left, 3, true);
        teardown();
    }
}

static unsigned looks;

static bool look(void)
{
    qatomic_inc(&looks);
    return false;
}

static const GuestMemfdPatience looking = { 1000000, look };

/* Wait until somebody who stands in the queue has looked up often. */
static void wait_for_looks(void)
{
    qatomic_set(&looks, 0);
    while (qatomic_read(&looks) < 4) {
        sched_yield();
    }
}

/* Pages 6 to 49 of block 1, 10 and 11 of block 2. */
static void *convert_wide(void *opaque)
{
    g_assert_cmpint(guest_memfd_convert_gpa(256 * page_size, 46 * page_size,
                                            true, &looking), ==, 0);
    return NULL;
}

/* Page 10 of block 2, which is private by then. */
static void *convert_late(void *opaque)
{
    g_assert_cmpint(guest_memfd_convert_gpa(300 * page_size, page_size, false,
                                            &looking), ==, 0);
    g_assert_true(guest_memfd_any_private(&blocks[2].gmem, 11 * page_size, 1));
    return NULL;
}

/*
 * A wide request that waits is not overtaken by one that came later, even
 * where that could begin already; so it does not starve.
 */
static void test_first_come(void)
{
    QemuThread thread, wide, late;

    setup();
    start_inside(&thread);
    qemu_thread_create(&wide, "wide", convert_wide, NULL,
                       QEMU_THREAD_JOINABLE);
    wait_for_looks();
    qemu_thread_create(&late, "late", convert_late, NULL,
                       QEMU_THREAD_JOINABLE);
    wait_for_looks();
    wait_for_looks();
    qemu_sem_post(&leave);
    end_inside(&thread);
    qemu_thread_join(&wide);
    qemu_thread_join(&late);
    model(1, 3, 47, true);
    model(2, 11, 1, true);
    teardown();
}

static bool always(void)
{
    return true;
}

static const GuestMemfdPatience no_patience = { 1000000, always };

static void test_interrupted_in_queue(void)
{
    QemuThread thread;

    setup();
    start_inside(&thread);
    bql_lock();
    g_assert_cmpint(guest_memfd_convert_gpa(253 * page_size, page_size, false,
                                            &no_patience), ==, -EINTR);
    bql_unlock();
    /* It is not in anybody's way. */
    g_assert_cmpint(convert(1, 0, 3, true), ==, 0);
    qemu_sem_post(&leave);
    end_inside(&thread);
    model(1, 0, 7, true);
    teardown();
}

static unsigned looks_left;

static bool after_some_looks(void)
{
    return looks_left-- == 0;
}

/* All is as it was, and listeners have it again. */
static void test_interrupted_while_busy(void)
{
    const GuestMemfdPatience p = { 1000000000, after_some_looks };

    setup();
    looks_left = 3;
    fail_call(2, EAGAIN, 4);
    given(0, 5, 1);
    fail_call(2, EAGAIN, 4);
    g_assert_cmpint(guest_memfd_convert_gpa(4 * page_size, 3 * page_size, true,
                                            &p), ==, -EINTR);
    expect("-0a:4+1 -0a:6+1 P0:4+1 P0:6+1=EAGAIN P0:6+1=EAGAIN "
           "P0:6+1=EAGAIN P0:6+1=EAGAIN S0:4+1 +0a:4+1 +0a:6+1");
    teardown();
}

/* One second is not for all: the caller says how long. */
static void test_patience(void)
{
    const GuestMemfdPatience p = { 60000000, NULL };

    setup();
    fail_call(1, EAGAIN, FOREVER);
    g_assert_cmpint(guest_memfd_convert_gpa(0, page_size, true, &p), ==,
                    -EAGAIN);
    g_assert_cmpint(now_us, >=, 60000000);
    g_assert_cmpint(now_us, <, 61000000);
    teardown();
}

static void unregister_all(void)
{
    unsigned i, k;

    bql_lock();
    for (i = 0; i < BLOCKS; i++) {
        for (k = 0; k < LISTENERS; k++) {
            if (is_registered(&blocks[i].listeners[k])) {
                unregister_listener(&blocks[i].listeners[k]);
            }
        }
    }
    bql_unlock();
    bql_taken = 0;
}

/* vCPUs do not wait for the main loop where nobody has to be told. */
static void test_nobody_listens(void)
{
    setup();
    unregister_all();
    g_assert_cmpint(convert(0, 5, 4, true), ==, 0);
    g_assert_cmpint(convert(0, 6, 1, false), ==, 0);
    fail_call(3, ENOMEM, 1);
    g_assert_cmpint(convert(1, 6, 1, true), ==, -ENOMEM);
    expect("P0:5+4 S0:6+1 P1:6+1=ENOMEM");
    g_assert_cmpint(bql_taken, ==, 0);
    model(0, 5, 1, true);
    model(0, 7, 2, true);
    teardown();
}

/* It comes where nobody was, so the rest of the request is told to it. */
static void register_first(unsigned block, uint64_t first, bool private)
{
    kernel_hook = NULL;
    bql_lock();
    register_listener(&blocks[0].listeners[2]);
    bql_unlock();
}

static void test_first_listener_comes(void)
{
    setup();
    unregister_all();
    kernel_hook = register_first;
    fail_call(1, ENOMEM, 1);
    g_assert_cmpint(convert(0, 5, 1, true), ==, -ENOMEM);
    expect("P0:5+1=ENOMEM +0c:5+1");
    teardown();
}

/* Every other page of block 0 is private. */
static void given_many_runs(void)
{
    uint64_t page;

    setup();
    unregister_all();
    for (page = 1; page < PAGES; page += 2) {
        given(0, page, 1);
    }
}

/* One call does for them, and others for what is few. */
static void test_many_runs(void)
{
    GuestMemfdRange r[] = { range(0, 0, PAGES), range(1, 3, 2) };

    given_many_runs();
    g_assert_cmpint(guest_memfd_convert(r, 2, true), ==, 0);
    expect("P0:0+150 P1:3+2");
    model(0, 0, PAGES, true);
    model(1, 3, 2, true);
    teardown();

    given_many_runs();
    g_assert_cmpint(convert(0, 0, PAGES - 2, false), ==, 0);
    expect("S0:1+147");
    model(0, 0, PAGES - 2, false);
    teardown();
}

/* If that fails, each run is tried, and all is undone if one fails. */
static void test_many_runs_fail(void)
{
    given_many_runs();
    fail_call(1, EAGAIN, 1);
    g_assert_cmpint(convert(0, 0, PAGES, true), ==, 0);
    g_assert_cmpint(kernel_calls, ==, 1 + PAGES / 2);
    model(0, 0, PAGES, true);
    teardown();

    given_many_runs();
    blocks[0].pins[100] = FOREVER;
    g_assert_cmpint(convert(0, 0, PAGES, true), ==, -EAGAIN);
    teardown();
}

/* What is shared before a launch is not for listeners. */
static void test_launching(void)
{
    unsigned i;

    setup();
    for (i = 0; i < LISTENERS; i++) {
        memset(blocks[0].listeners[i].mapped, 0, PAGES);
    }
    blocks[0].gmem.state.launching = true;
    fail_call(2, ENOMEM, 1);
    g_assert_cmpint(convert(0, 0, 5, true), ==, 0);
    g_assert_cmpint(convert(0, 5, PAGES - 5, true), ==, -ENOMEM);
    g_assert_cmpint(convert(0, 0, 1, false), ==, 0);
    g_assert_cmpint(convert(0, 0, PAGES, true), ==, 0);
    expect("P0:0+5 P0:5+145=ENOMEM S0:0+1 P0:0+1 P0:5+145");
    guest_memfd_tell_listeners(&blocks[0].gmem);
    g_assert_cmpint(convert(0, 7, 1, false), ==, 0);
    expect("S0:7+1 +0a:7+1");
    model(0, 0, PAGES, true);
    model(0, 7, 1, false);
    teardown();
}

static void test_covered_pages(void)
{
    setup();
    given(0, 5, 4);
    blocks[0].gmem.state.covered_pages = 1;
    g_assert_cmpint(convert(0, 6, 2, false), ==, 0);
    expect("S0:6+2 U0:6+2 +0a:6+2");
    model(0, 5, 1, true);
    model(0, 6, 2, false);
    teardown();
}

static void test_parallel(void)
{
    QemuThread thread;

    setup();
    start_inside(&thread);
    /* In the same file, on both sides. */
    g_assert_cmpint(convert(1, 0, 3, true), ==, 0);
    g_assert_cmpint(convert(1, 7, 3, true), ==, 0);
    g_assert_false(guest_memfd_any_private(&blocks[1].gmem, 3 * page_size,
                                           4 * page_size));
    qemu_sem_post(&leave);
    end_inside(&thread);
    model(1, 0, 10, true);
    teardown();
}

/* Guest physical addresses */

typedef struct Section {
    uint64_t gpa;
    uint64_t size;
    const MemoryRegion *mr;
    uint64_t offset;
} Section;

#define P(n) ((n) * page_size)
#define MAP_SECTIONS 11

static RAMBlock plain_block = { .host = (uint8_t *)1, .guest_memfd = -1 };
static MemoryRegion mmio, plain_ram = { .ram_block = &plain_block };
static FlatView view;
static unsigned views, sections_seen;
AddressSpace address_space_memory;

static void map(Section *s)
{
    const uint64_t half = page_size / 2;
    Section sections[MAP_SECTIONS] = {
        { P(0), P(100), &blocks[0].mr, 0 },
        /* a hole of 50 pages */
        { P(150), P(10), &mmio, 0 },
        { P(160), P(10), &plain_ram, 0 },
        { P(170), P(10), &blocks[2].mr, P(70) },
        { P(180), P(20), &plain_ram, 0 },
        /* what is at 50 is here again */
        { P(200), P(50), &blocks[0].mr, P(50) },
        { P(250), P(50), &blocks[1].mr, P(0) },
        { P(300), P(50), &blocks[2].mr, P(10) },
        /* only page 401 is whole */
        { P(400) + half, P(2), &blocks[1].mr, P(60) + half },
        /* and here none is a page of the file */
        { P(410), P(4), &blocks[1].mr, P(100) + half },
        { 1ull << 51, P(20), &blocks[1].mr, P(120) },
    };

    memcpy(s, sections, sizeof(sections));
}

/* Which page of which block is at this page of the guest's memory? */
static uint64_t page_in_block(uint64_t gfn, RAMBlock **rb)
{
    Section sections[MAP_SECTIONS];
    uint64_t gpa = gfn * page_size;
    unsigned i;

    map(sections);
    for (i = 0; i < MAP_SECTIONS; i++) {
        Section *s = &sections[i];

        if (gpa - s->gpa < s->size) {
            *rb = s->mr->ram_block;
            return (s->offset + gpa - s->gpa) / page_size;
        }
    }
    g_assert_not_reached();
}

FlatView *address_space_get_flatview(const AddressSpace *as)
{
    g_assert_true(as == &address_space_memory);
    qatomic_inc(&views);
    return &view;
}

void flatview_unref(FlatView *fv)
{
    g_assert_cmpint(qatomic_fetch_dec(&views), >, 0);
}

void flatview_for_each_range(FlatView *fv, flatview_cb cb, void *opaque)
{
    Section sections[MAP_SECTIONS];
    unsigned i;

    map(sections);
    for (i = 0; i < MAP_SECTIONS; i++) {
        Section *s = &sections[i];

        qatomic_inc(&sections_seen);
        if (cb(int128_make64(s->gpa), int128_make64(s->size), s->mr,
               s->offset, opaque)) {
            break;
        }
    }
}

typedef struct GpaCase {
    const char *name;
    uint64_t first;     /* in pages */
    uint64_t pages;
    bool private;
    int ret;
    const char *events;
} GpaCase;

/* 52 bits of address, in pages of 4 KiB */
#define ALL (1ull << 40)

static const GpaCase gpa_cases[] = {
    { "RAM is converted", 7, 3, true, 0, "-0a:7+3 P0:7+3" },
    { "RAM up to its end is converted", 98, 2, true, 0,
      "-0a:98+2 -0b:98+2 P0:98+2" },
    { "an alias is converted", 203, 1, true, 0, "-0a:53+1 -0b:53+1 P0:53+1" },
    { "two blocks are converted", 298, 4, true, 0,
      "-1a:48+2 -1b:48+2 -2a:10+2 P1:48+2 P2:10+2" },
    { "three blocks, one of them by an alias", 249, 53, true, 0,
      "-0a:99+1 -0b:99+1 -1a:0+50 -1b:40+10 -2a:10+2 "
      "P0:99+1 P1:0+50 P2:10+2" },
    { "RAM high up", 1ull << 39, 2, true, 0, "-1a:120+2 P1:120+2" },
    { "what is shared stays so", 7, 3, false, 0, "" },
    { "a hole cannot be private", 120, 2, true, -EINVAL, "" },
    { "a hole is shared", 120, 2, false, 0, "" },
    { "a hole in front", 149, 25, true, -EINVAL, "" },
    { "a hole in the midst", 99, 102, true, -EINVAL, "" },
    { "a hole at the end", 98, 3, true, -EINVAL, "" },
    { "MMIO cannot be private", 150, 1, true, -EINVAL, "" },
    { "MMIO is shared", 150, 1, false, 0, "" },
    { "RAM that is no guest_memfd cannot be private", 160, 1, true, -EINVAL,
      "" },
    { "RAM that is no guest_memfd is shared", 160, 1, false, 0, "" },
    { "plain RAM and then ours", 169, 2, true, -EINVAL, "" },
    { "ours and then plain RAM", 179, 2, true, -EINVAL, "" },
    { "behind everything", 1ull << 45, 1, true, -EINVAL, "" },
    { "behind everything is shared", 1ull << 45, 1, false, 0, "" },
    { "the whole page of a region that begins within one", 401, 1, true, 0,
      "-1a:61+1 -1b:61+1 P1:61+1" },
    { "half a page in front", 400, 2, true, -EINVAL, "" },
    { "half a page behind", 401, 2, true, -EINVAL, "" },
    { "pages that are none of the file", 410, 1, true, -EINVAL, "" },
    { "pages that are none of the file are shared", 410, 1, false, 0, "" },
    { "all of 52 bits cannot be private", 0, ALL, true, -EINVAL, "" },
    { "all of 52 bits is shared", 0, ALL, false, 0, "" },
    { "no pages", 7, 0, true, -EINVAL, "" },
    { "no pages shared", 7, 0, false, -EINVAL, "" },
    { "around the end of addresses", -2ull, 3, false, -EINVAL, "" },
    { "everything there is", 0, -1ull, false, 0, "" },
};

static int convert_gpa(uint64_t gpa, uint64_t size, bool private)
{
    return guest_memfd_convert_gpa(gpa, size, private, NULL);
}

static void test_gpa(const void *data)
{
    const GpaCase *c = data;

    setup();
    sections_seen = 0;
    g_assert_cmpint(convert_gpa(c->first * page_size,
                                c->pages * page_size, c->private),
                    ==, c->ret);
    expect(c->events);
    g_assert_cmpint(views, ==, 0);
    g_assert_cmpint(sections_seen, <=, MAP_SECTIONS);
    sync_model();
    teardown();
}

static void test_gpa_unaligned(void)
{
    setup();
    g_assert_cmpint(convert_gpa(1, page_size, false), ==, -EINVAL);
    g_assert_cmpint(convert_gpa(0, page_size - 1, false), ==,
                    -EINVAL);
    g_assert_cmpint(convert_gpa(0, page_size + 1, true), ==,
                    -EINVAL);
    g_assert_cmpint(convert_gpa(page_size / 2, page_size, true),
                    ==, -EINVAL);
    expect("");
    teardown();
}

static void test_gpa_cost(void)
{
    setup();
    sections_seen = 0;
    g_assert_cmpint(convert_gpa(P(7), P(3), true), ==, 0);
    model(0, 7, 3, true);
    g_assert_cmpint(sections_seen, ==, 2);
    teardown();
}

static void test_gpa_all_shared(void)
{
    setup();
    given(0, 10, 2);
    given(1, 130, 3);
    given(2, 75, 1);
    given(2, 140, 1);
    g_assert_cmpint(convert_gpa(0, ALL * page_size, false), ==, 0);
    expect("S0:10+2 S1:130+3 S2:75+1 "
           "+0a:10+2 +1a:130+3 +2a:75+1 +2b:75+1");
    model(0, 10, 2, false);
    model(1, 130, 3, false);
    model(2, 75, 1, false);
    teardown();
}

static void test_gpa_all_or_nothing(void)
{
    setup();
    fail_call(2, ENOMEM, 1);
    g_assert_cmpint(convert_gpa(P(298), P(4), true), ==, -ENOMEM);
    expect("-1a:48+2 -1b:48+2 -2a:10+2 P1:48+2 P2:10+2=ENOMEM S1:48+2 "
           "+1a:48+2 +1b:48+2 +2a:10+2");
    teardown();
}

/* The same pages at two addresses */
static void test_gpa_separate(void)
{
    setup();
    separate = true;
    g_assert_cmpint(convert_gpa(P(298), P(4), true), ==, 0);
    expect("Q298+2P Q300+2P");
    /* What is there becomes shared; where nothing is, it is. */
    g_assert_cmpint(convert_gpa(P(120), P(60), false), ==, 0);
    expect("Q170+10S");
    g_assert_cmpint(convert_gpa(P(120), P(60), true), ==, -EINVAL);
    fail_call(5, EIO, 1);
    g_assert_cmpint(convert_gpa(P(298), P(4), false), ==, -EIO);
    expect("Q298+2S Q300+2S=ERROR Q300+2P Q298+2P");
    /* What was so before is left alone when that is undone. */
    g_assert_cmpint(convert_gpa(P(301), P(1), false), ==, 0);
    fail_call(10, EIO, 1);
    g_assert_cmpint(convert_gpa(P(298), P(4), false), ==, -EIO);
    expect("Q301+1S Q298+2S Q300+2S=ERROR Q300+1P Q298+2P");
    g_assert_cmpint(convert_gpa(P(298), P(4), false), ==, 0);
    expect("Q298+2S Q300+2S");
    separate = false;
    teardown();
}

static void test_gpa_alias_twice(void)
{
    setup();
    g_assert_cmpint(convert_gpa(P(50), P(50), true), ==, 0);
    expect("-0a:50+50 -0b:50+50 P0:50+50");
    g_assert_cmpint(convert_gpa(P(0), P(250), false), ==, 0);
    expect("S0:50+50 +0a:50+50 +0b:50+50");
    teardown();
}

/* Against the model */

static int random_request(GRand *rand, bool apply)
{
    unsigned n = g_rand_int_range(rand, 1, 5), i;
    bool private = g_rand_boolean(rand);
    GuestMemfdRange r[4];
    int ret;

    for (i = 0; i < n; i++) {
        uint64_t first = g_rand_int_range(rand, 0, PAGES);

        r[i] = range(g_rand_int_range(rand, 0, BLOCKS), first,
                     g_rand_int_range(rand, 0, PAGES - first + 1));
    }
    ret = guest_memfd_convert(r, n, private);
    for (i = 0; apply && !ret && i < n; i++) {
        model(container_of(r[i].gmem, Block, gmem) - blocks,
              r[i].offset / page_size, r[i].size / page_size, private);
    }
    return ret;
}

/* Runs of both states in all blocks */
static void prepare_mixed(bool private)
{
    unsigned i;

    for (i = 0; i < 5; i++) {
        given(i % 2, 10 * i, 3 + i);
    }
    if (!private) {
        given(2, 38, 4);
    }
}

static int convert_mixed(bool private)
{
    GuestMemfdRange r[] = { range(2, 30, 20), range(0, 0, 60),
                            range(1, 5, 90) };

    return guest_memfd_convert(r, 3, private);
}

static void model_mixed(bool private)
{
    model(2, 30, 20, private);
    model(0, 0, 60, private);
    model(1, 5, 90, private);
}

/*
 * Every call fails in its turn, with each error, once or for ever; then the
 * conversion is undone, or the fault was overcome.
 */
static void test_fault_everywhere(void)
{
    static const int errors[] = { EAGAIN, EINTR, ENOMEM, EIO };
    unsigned direction, e, at, calls = 0;

    for (direction = 0; direction < 2; direction++) {
        setup();
        prepare_mixed(direction);
        g_assert_cmpint(convert_mixed(direction), ==, 0);
        model_mixed(direction);
        calls = kernel_calls;
        g_assert_cmpint(calls, >, 5);
        teardown();

        for (e = 0; e < ARRAY_SIZE(errors); e++) {
            for (at = 1; at <= calls; at++) {
                int ret;

                setup();
                prepare_mixed(direction);
                fail_call(at, errors[e], 1);
                ret = convert_mixed(direction);
                if (e < 2) {
                    g_assert_cmpint(ret, ==, 0);
                    model_mixed(direction);
                } else {
                    g_assert_cmpint(ret, ==, -errors[e]);
                }
                g_assert_cmpint(reports, ==, 0);
                teardown();
            }
        }
    }
}

/* What undoes a failed conversion fails, too. */
static void test_fault_while_undone(void)
{
    unsigned direction, at, second;

    for (direction = 0; direction < 2; direction++) {
        for (at = 2; at <= 6; at++) {
            for (second = at + 1; second < 2 * at; second++) {
                setup();
                prepare_mixed(direction);
                fail_call(at, ENOMEM, 1);
                fail_call(second, EIO, 1);
                g_assert_cmpint(convert_mixed(direction), ==, -ENOMEM);
                g_assert_cmpint(reports, ==, 1);
                sync_model();
                teardown();
            }
        }
    }
}

static void test_refused_everywhere(void)
{
    unsigned at, calls;

    setup();
    prepare_mixed(false);
    g_assert_cmpint(convert_mixed(false), ==, 0);
    model_mixed(false);
    calls = populates;
    g_assert_cmpint(calls, >, 5);
    teardown();

    for (at = 1; at <= calls; at++) {
        setup();
        prepare_mixed(false);
        populate_fault = (Fault) { at, 1, ENOSPC };
        g_assert_cmpint(convert_mixed(false), ==, -ENOSPC);
        g_assert_cmpint(reports, ==, 0);
        teardown();
    }
}

static void test_random(void)
{
    GRand *rand = g_rand_new_with_seed(g_test_rand_int());
    unsigned i, failed = 0;

    setup();
    g_string_free(events, true);
    events = NULL;
    for (i = 0; i < 4000; i++) {
        unsigned k;
        int ret;

        for (k = 0; k < BLOCKS; k++) {
            blocks[k].gmem.state.complained = false;
        }
        kernel_calls = 0;
        populates = 0;
        reports = 0;
        memset(kernel_faults, 0, sizeof(kernel_faults));
        populate_fault = (Fault) {};
        if (g_rand_boolean(rand)) {
            static const int errors[] = { EAGAIN, EINTR, ENOMEM };

            kernel_faults[0] = (Fault) {
                g_rand_int_range(rand, 1, 6), g_rand_int_range(rand, 1, 4),
                errors[g_rand_int_range(rand, 0, 3)],
            };
        }
        if (g_rand_int_range(rand, 0, 4) == 0) {
            populate_fault = (Fault) { g_rand_int_range(rand, 1, 8), 1,
                                       ENOSPC };
        }
        for (k = 0; k < BLOCKS; k++) {
            Block *b = &blocks[k];

            memset(b->pins, 0, sizeof(b->pins));
            b->pins[g_rand_int_range(rand, 0, PAGES)] =
                g_rand_int_range(rand, 0, 8) ? g_rand_int_range(rand, 0, 6)
                                             : FOREVER;
        }
        ret = random_request(rand, true);
        failed += !!ret;
        if (reports) {
            sync_model();
        }
        check();
    }
    /* Neither is rare. */
    g_test_message("%u requests failed", failed);
    g_assert_cmpint(failed, >, 200);
    g_assert_cmpint(failed, <, 3000);
    teardown();
    g_rand_free(rand);
}

/* Threads */

#define THREADS 4
#define REQUESTS 3000

static unsigned running;

static void *requests(void *opaque)
{
    unsigned i;

    chaos = g_rand_new_with_seed((uintptr_t)opaque);
    for (i = 0; i < REQUESTS; i++) {
        bool with_bql = g_rand_int_range(chaos, 0, 4) == 0;

        if (with_bql) {
            bql_lock();
        }
        random_request(chaos, false);
        if (with_bql) {
            bql_unlock();
        }
    }
    g_rand_free(chaos);
    qatomic_dec(&running);
    return NULL;
}

/* Somebody looks, and a listener comes and goes. */
static void *onlooker(void *opaque)
{
    while (qatomic_read(&running)) {
        unsigned i;

        for (i = 0; i < BLOCKS; i++) {
            Listener *l = &blocks[i].listeners[2];

            guest_memfd_any_private(&blocks[i].gmem, 7, 100 * page_size);
            g_assert_cmpint(guest_memfd_private_runs(&blocks[i].gmem), <=,
                            PAGES / 2);
            bql_lock();
            register_listener(l);
            bql_unlock();
            bql_lock();
            unregister_listener(l);
            bql_unlock();
        }
    }
    return NULL;
}

static void test_threads(void)
{
    QemuThread threads[THREADS + 1];
    unsigned i, seed = g_test_rand_int();

    setup();
    g_string_free(events, true);
    events = NULL;
    running = THREADS;
    for (i = 0; i < THREADS; i++) {
        qemu_thread_create(&threads[i], "requests", requests,
                           (void *)(uintptr_t)(seed + i),
                           QEMU_THREAD_JOINABLE);
    }
    qemu_thread_create(&threads[i], "onlooker", onlooker, NULL,
                       QEMU_THREAD_JOINABLE);
    for (i = 0; i <= THREADS; i++) {
        qemu_thread_join(&threads[i]);
    }
    sync_model();
    teardown();
}

/* Each thread has pages of its own; what it asks for is what it gets. */
static void *own_pages(void *opaque)
{
    unsigned own = (uintptr_t)opaque;
    GRand *rand = g_rand_new_with_seed(own);
    unsigned i, block;

    for (i = 0; i < REQUESTS; i++) {
        bool private = g_rand_boolean(rand);
        uint64_t first = 37 * own + g_rand_int_range(rand, 0, 30);
        uint64_t pages = g_rand_int_range(rand, 1, 7);
        GuestMemfdRange r[BLOCKS];

        for (block = 0; block < BLOCKS; block++) {
            r[block] = range(block, first, pages);
        }
        g_assert_cmpint(guest_memfd_convert(r, BLOCKS, private), ==, 0);
        for (block = 0; block < BLOCKS; block++) {
            model(block, first, pages, private);
            g_assert_cmpint(guest_memfd_any_private(&blocks[block].gmem,
                                                    first * page_size,
                                                    pages * page_size),
                            ==, private);
        }
    }
    g_rand_free(rand);
    return NULL;
}

static void test_threads_disjoint(void)
{
    QemuThread threads[THREADS];
    unsigned i;

    setup();
    g_string_free(events, true);
    events = NULL;
    for (i = 0; i < THREADS; i++) {
        qemu_thread_create(&threads[i], "own-pages", own_pages,
                           (void *)(uintptr_t)i, QEMU_THREAD_JOINABLE);
    }
    for (i = 0; i < THREADS; i++) {
        qemu_thread_join(&threads[i]);
    }
    teardown();
}

static const struct {
    const char *name;
    void (*test)(void);
} tests[] = {
    { "a new block is shared, and nothing is converted (prior art 6)",
      test_begins_shared },
    { "to private: listeners first", test_to_private },
    { "to shared: the kernel first", test_to_shared },
    { "what is so costs nothing", test_nothing_to_do },
    { "one call and one notification a run (prior art 5)", test_runs },
    { "a listener hears of what it has registered", test_sections },
    { "ranges of several blocks", test_several_blocks },
    { "ranges that overlap are converted once", test_overlap },
    { "ranges that are none are refused before anything is done",
      test_bad_ranges },
    { "a block without private memory is shared", test_no_private_memory },
    { "queries", test_queries },
    { "a page that is held for a moment", test_busy_for_a_moment },
    { "a page that is held for ever: a second (prior art 1)",
      test_busy_for_ever },
    { "the second begins anew when a page goes", test_second_begins_anew },
    { "what is before a busy page goes first (prior art 1)", test_split },
    { "and comes back when that stays busy", test_split_undone },
    { "an offset that does not help", test_nonsense_offset },
    { "an interrupted call is made again", test_interrupted },
    { "but not for ever", test_interrupted_for_ever },
    { "other errors are final", test_error_at_once },
    { "to private: one block fails, none is converted (prior art 3, 4)",
      test_other_block_fails },
    { "to shared: one block fails, none is converted (prior art 3)",
      test_other_block_fails_shared },
    { "undo is refused: what is kept is the truth", test_undo_refused },
    { "who cannot undo complains once a block", test_complains_once },
    { "a listener refuses: all is undone (prior art 4)",
      test_listener_refuses },
    { "a listener refuses late: all is undone (prior art 4)",
      test_listener_refuses_late },
    { "a listener refuses, and a page cannot go back",
      test_listener_refuses_and_page_is_held },
    { "a listener cannot map again what it had", test_listener_fails_again },
    { "the BQL is not held in the kernel, but by who held it", test_bql },
    { "a listener that comes meanwhile maps nothing on its way",
      test_listener_comes },
    { "who waits gives up the BQL", test_waits_without_bql },
    { "who comes first is served first", test_first_come },
    { "who waits can be interrupted", test_interrupted_in_queue },
    { "who tries again can be interrupted", test_interrupted_while_busy },
    { "the caller's patience counts", test_patience },
    { "nobody listens: the BQL is not taken", test_nobody_listens },
    { "the first listener comes meanwhile", test_first_listener_comes },
    { "many runs are converted with one call", test_many_runs },
    { "many runs, and that call fails", test_many_runs_fail },
    { "before a launch is finished nobody is told", test_launching },
    { "covered pages are uncovered first", test_covered_pages },
    { "gpa: separate memory", test_gpa_separate },
    { "disjoint requests run in parallel", test_parallel },
    { "gpa: not aligned", test_gpa_unaligned },
    { "gpa: what is behind the range is not looked at", test_gpa_cost },
    { "gpa: all of 52 bits becomes shared", test_gpa_all_shared },
    { "gpa: all or nothing", test_gpa_all_or_nothing },
    { "gpa: an alias twice is converted once", test_gpa_alias_twice },
    { "a fault at every call", test_fault_everywhere },
    { "a fault while it is undone", test_fault_while_undone },
    { "a refusal at every notification", test_refused_everywhere },
    { "random requests and faults", test_random },
    { "random requests of several threads", test_threads },
    { "each thread has its pages", test_threads_disjoint },
};

int main(int argc, char **argv)
{
    unsigned i;

    g_test_init(&argc, &argv, NULL);
    page_size = qemu_real_host_page_size();
    qemu_mutex_init(&bql);
    qemu_mutex_init(&kernel_lock);
    for (i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path = g_strdup_printf("/guest-memfd-convert/%s",
                                                tests[i].name);

        g_test_add_func(path, tests[i].test);
    }
    for (i = 0; i < ARRAY_SIZE(gpa_cases); i++) {
        g_autofree char *path = g_strdup_printf("/guest-memfd-convert/gpa: %s",
                                                gpa_cases[i].name);

        g_test_add_data_func(path, &gpa_cases[i], test_gpa);
    }
    return g_test_run();
}
