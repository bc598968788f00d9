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
 * a page that becomes private, and no other thread may convert pages of the
 * same block.  After each request, state, kernel, model and listeners agree.
 *
 * "prior art": a defect that prototypes of others had, by its number in the
 * project's notes on them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "monitor/monitor.h"
#include "system/address-spaces.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-gpa.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/tests/include/test-discard-manager.h"
#include "system/kvm.h"
#include "system/memory-internal.h"
#include "system/memory.h"
#include "system/guest-memfd-access.h"
#include "system/guest-memfd-events.h"
#include "system/ramblock.h"
#include "system/runstate.h"

#define BLOCKS 3
#define PAGES 150
#define LISTENERS 3

/* Listener b has registered a part of the block only, c nothing at first. */
#define B_FIRST 40
#define B_PAGES 60

/* A block of its own, for requests of many chunks; only the kernel has it */
#define BIG BLOCKS
#define CHUNK_PAGES (GUEST_MEMFD_CHUNK / page_size)
#define BIG_PAGES (4 * CHUNK_PAGES)

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
 * @converting: a thread is in the kernel
 * @unmappable: showing a page fails there
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
    bool converting;
    uint8_t unmappable[PAGES];
    unsigned pins[PAGES];
} Block;

/* Fault: the @at-th call and those behind it fail with @error */
typedef struct Fault {
    unsigned at;
    unsigned times;
    int error;
} Fault;

static Block blocks[BLOCKS];
static GuestMemfd big;
static RAMBlock big_rb;
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
static unsigned vm_stops;

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

void qemu_system_vmstop_request_prepare(void)
{
}

void qemu_system_vmstop_request(RunState state)
{
    g_assert_cmpint(state, ==, RUN_STATE_INTERNAL_ERROR);
    vm_stops++;
}

static unsigned pinned_events;

void guest_memfd_event_pinned(const char *id, uint64_t offset)
{
    qatomic_inc(&pinned_events);
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

    if (fd == BIG) {
        kernel_calls++;
        g_assert_cmpint(pages, <=, CHUNK_PAGES);
        event("%c:%" PRIu64 "+%" PRIu64, private ? 'P' : 'S', first, pages);
        return 0;
    }
    g_assert_cmpint(fd, <, BLOCKS);
    g_assert_cmpint(offset % page_size, ==, 0);
    g_assert_cmpint(size % page_size, ==, 0);
    g_assert_cmpint(pages, >, 0);
    g_assert_cmpint(first + pages, <=, PAGES);

    WITH_QEMU_LOCK_GUARD(&kernel_lock) {
        g_assert_false(b->converting);
        b->converting = true;
    }
    if (kernel_hook) {
        kernel_hook(fd, first, private);
    }
    WITH_QEMU_LOCK_GUARD(&kernel_lock) {
        ret = kernel_answer(b, first, pages, private, error_offset);
        if (!ret) {
            memset(b->private + first, private, pages);
        }
        b->converting = false;
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
    static TestManager no_listeners;

    return gmem == &big ? &no_listeners
           : &container_of(gmem, Block, gmem)->manager;
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
        if (!s->launching && test_bit(page, s->shared)) {
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

bool guest_memfd_is_hidden_region(const MemoryRegion *mr)
{
    return false;
}

MemoryRegion *flatview_translate(FlatView *fv, hwaddr addr, hwaddr *xlat,
                                 hwaddr *len, bool is_write, MemTxAttrs attrs)
{
    return NULL;
}

/* As guest-memfd-access.c does it, where a page is not covered. */
int guest_memfd_show(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    uint64_t page;

    if (gmem != &big) {
        Block *b = container_of(gmem, Block, gmem);

        for (page = first; page < end; page++) {
            g_assert_false(b->private[page]);
            g_assert_false(test_bit(page, gmem->state.shared));
            if (b->unmappable[page]) {
                event("U%d:%" PRIu64 "=ERROR", (int)(b - blocks), page);
                return -ENOMEM;
            }
        }
    }
    guest_memfd_state_set(gmem, first, end, true);
    return 0;
}

void guest_memfd_hide(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    guest_memfd_state_set(gmem, first, end, false);
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
    big_rb = (RAMBlock) { .fd = BIG, .max_length = BIG_PAGES * page_size };
    big = (GuestMemfd) { .rb = &big_rb };
    guest_memfd_state_init(&big, true);
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
    vm_stops = 0;
    pinned_events = 0;
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
        uint64_t page, found_runs, private = 0, runs = 0;

        for (page = 0; page < PAGES; page++) {
            bool is_private = !test_bit(page, s->shared);

            g_assert_cmpint(is_private, ==, b->private[page]);
            g_assert_cmpint(is_private, ==, b->model[page]);
            g_assert_cmpint(is_private, ==,
                            guest_memfd_any_private(&b->gmem,
                                                    page * page_size + 1, 1));
            private += is_private;
            runs += is_private && (!page || test_bit(page - 1, s->shared));
            for (k = 0; k < LISTENERS; k++) {
                Listener *l = &b->listeners[k];
                bool hears = is_registered(l) &&
                             (k != 1 || (page >= B_FIRST &&
                                         page < B_FIRST + B_PAGES));

                g_assert_cmpint(l->mapped[page], ==,
                                hears && !is_private && !l->refused[page]);
            }
        }
        g_assert_cmpint(guest_memfd_private_pages(&b->gmem, &found_runs), ==,
                        private);
        g_assert_cmpint(found_runs, ==, runs);
        if (!reports) {
            g_assert_cmpint(s->to_private - s->to_shared, ==, private);
        }
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
    guest_memfd_state_destroy(&big);
    if (events) {
        g_string_free(events, true);
        events = NULL;
    }
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

static const GuestMemfdRetry a_second = { .timeout = 1000000 };

static __thread uint64_t pages_done;

static int convert_retry(unsigned block, uint64_t first, uint64_t pages,
                         bool private, const GuestMemfdRetry *retry)
{
    uint64_t done;
    int ret = guest_memfd_convert(&blocks[block].gmem, first * page_size,
                                  pages * page_size, private, retry, &done);

    g_assert_cmpint(done % page_size, ==, 0);
    pages_done = done / page_size;
    g_assert_cmpint(pages_done, <=, pages);
    g_assert_cmpint(pages_done == pages, ==, !ret);
    return ret;
}

static int convert(unsigned block, uint64_t first, uint64_t pages,
                   bool private)
{
    return convert_retry(block, first, pages, private, &a_second);
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
    g_assert_cmpint(convert(0, 7, 0, true), ==, 0);
    expect("");
    teardown();
}

static void test_span(void)
{
    setup();
    given(0, 2, 2);
    given(0, 6, 1);
    g_assert_cmpint(convert(0, 0, 10, true), ==, 0);
    model(0, 0, 10, true);
    expect("-0a:0+2 -0a:4+2 -0a:7+3 P0:0+10");
    g_assert_cmpint(convert(0, 4, 1, false), ==, 0);
    expect("S0:4+1 +0a:4+1");
    g_assert_cmpint(convert(0, 1, 8, false), ==, 0);
    model(0, 1, 8, false);
    expect("S0:1+8 +0a:1+3 +0a:5+4");
    /* What is so already at the edges is no part of the span. */
    g_assert_cmpint(convert(0, 0, 10, false), ==, 0);
    model(0, 0, 10, false);
    expect("S0:0+10 +0a:0+1 +0a:9+1");
    given(0, 0, 4);
    given(0, 8, 4);
    g_assert_cmpint(convert(0, 0, 12, true), ==, 0);
    model(0, 0, 12, true);
    expect("-0a:4+4 P0:4+4");
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

static void test_bad_ranges(void)
{
    const struct {
        uint64_t offset;
        uint64_t size;
    } bad[] = {
        { PAGES * page_size, page_size }, { 0, (PAGES + 1) * page_size },
        { (PAGES + 1) * page_size, 0 }, { 1, page_size }, { 0, 1 },
        { page_size, -page_size }, { -page_size, 2 * page_size },
    };
    uint64_t done;
    unsigned i;

    setup();
    for (i = 0; i < 2 * ARRAY_SIZE(bad); i++) {
        g_assert_cmpint(guest_memfd_convert(&blocks[1].gmem, bad[i / 2].offset,
                                            bad[i / 2].size, i % 2, NULL,
                                            &done), ==, -EINVAL);
        g_assert_cmpint(done, ==, 0);
    }
    expect("");
    teardown();
}

static void test_no_private_memory(void)
{
    GuestMemfd plain = { .rb = &blocks[0].rb };
    uint64_t done, runs;

    setup();
    guest_memfd_state_init(&plain, false);
    g_assert_cmpint(guest_memfd_convert(&plain, 0, page_size, true, NULL,
                                        &done), ==, -EINVAL);
    g_assert_cmpint(done, ==, 0);
    g_assert_cmpint(guest_memfd_convert(&plain, 0, page_size, false, NULL,
                                        &done), ==, 0);
    g_assert_cmpint(done, ==, page_size);
    g_assert_false(guest_memfd_any_private(&plain, 0, page_size));
    g_assert_cmpint(guest_memfd_private_pages(&plain, &runs), ==, 0);
    g_assert_cmpint(runs, ==, 0);
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
    g_assert_cmpint(guest_memfd_next_page(gmem, 0, PAGES, false), ==, 62);
    g_assert_cmpint(guest_memfd_next_page(gmem, 62, PAGES, true), ==, 66);
    g_assert_cmpint(guest_memfd_next_page(gmem, 66, 127, false), ==, 127);
    g_assert_cmpint(guest_memfd_next_page(gmem, 66, 66, false), ==, 66);
    g_assert_cmpint(guest_memfd_next_page(gmem, PAGES - 1, PAGES, true), ==,
                    PAGES);
    teardown();
}

/* Chunks */

static unsigned asked;

static bool ask(void)
{
    asked++;
    return false;
}

/*
 * However large a request is, the caller is asked after each chunk of 64 MiB
 * whether it has something else to do.
 */
static void test_chunks(void)
{
    const GuestMemfdRetry retry = { 1000000, ask };
    uint64_t done;

    setup();
    asked = 0;
    g_assert_cmpint(guest_memfd_convert(&big, 0, BIG_PAGES * page_size, true,
                                        &retry, &done), ==, 0);
    g_assert_cmpint(done, ==, BIG_PAGES * page_size);
    g_assert_cmpint(kernel_calls, ==, BIG_PAGES / CHUNK_PAGES);
    g_assert_cmpint(asked, ==, kernel_calls - 1);
    g_assert_false(guest_memfd_next_page(&big, 0, BIG_PAGES, true) <
                   BIG_PAGES);
    teardown();
}

static unsigned looks_left;

static bool after_some_looks(void)
{
    return looks_left-- == 0;
}

static void test_interrupted_between_chunks(void)
{
    const GuestMemfdRetry retry = { 1000000, after_some_looks };
    uint64_t done;

    setup();
    looks_left = 1;
    g_assert_cmpint(guest_memfd_convert(&big, page_size,
                                        (BIG_PAGES - 1) * page_size, true,
                                        &retry, &done), ==, -EINTR);
    g_assert_cmpint(done, ==, 2 * CHUNK_PAGES * page_size);
    g_assert_cmpint(kernel_calls, ==, 2);
    /* What is left is done when it is asked for again. */
    looks_left = 10;
    g_assert_cmpint(guest_memfd_convert(&big, page_size,
                                        (BIG_PAGES - 1) * page_size, true,
                                        &retry, &done), ==, 0);
    g_assert_cmpint(kernel_calls, ==, 4);
    teardown();
}

/* A chunk begins where something is to do, so shared pages cost nothing. */
static void test_sparse_chunks(void)
{
    uint64_t done;

    setup();
    g_assert_cmpint(guest_memfd_convert(&big, 7 * page_size, page_size, true,
                                        &a_second, &done), ==, 0);
    g_assert_cmpint(guest_memfd_convert(&big,
                                        (BIG_PAGES - 1) * page_size, page_size,
                                        true, &a_second, &done), ==, 0);
    g_string_truncate(events, 0);
    kernel_calls = 0;
    g_assert_cmpint(guest_memfd_convert(&big, 0, BIG_PAGES * page_size, false,
                                        &a_second, &done), ==, 0);
    g_assert_cmpint(kernel_calls, ==, 2);
    teardown();
}

/* No vCPU runs: one call does for a block. */
static void test_whole_block(void)
{
    setup();
    given(0, 3, 1);
    g_assert_cmpint(guest_memfd_convert_all(&blocks[0].gmem, true), ==, 0);
    model(0, 0, PAGES, true);
    expect("-0a:0+3 -0a:4+146 -0b:40+60 P0:0+150");
    teardown();
}

/* Pages that are busy */

static void test_busy_for_a_moment(void)
{
    setup();
    blocks[0].pins[6] = 2;
    g_assert_cmpint(convert(0, 5, 4, true), ==, 0);
    model(0, 5, 4, true);
    expect("-0a:5+4 P0:5+4=EAGAIN +0a:5+4 -0a:5+4 P0:5+4=EAGAIN +0a:5+4 "
           "-0a:5+4 P0:5+4");
    g_assert_cmpint(sleeps, ==, 2);
    g_assert_cmpint(now_us, ==, 1000 + 50 + 100);
    g_assert_cmpint(blocks[0].gmem.state.busy, ==, 2);
    g_assert_cmpint(blocks[0].gmem.state.busy_page, ==, 6);
    g_assert_cmpint(pinned_events, ==, 0);
    teardown();
}

static void test_busy_for_ever(void)
{
    setup();
    blocks[0].pins[5] = FOREVER;
    g_assert_cmpint(convert(0, 5, 7, true), ==, -EAGAIN);
    g_assert_cmpint(pages_done, ==, 0);
    /* After some failures, pages behind the busy one are left alone. */
    g_assert_true(g_str_has_suffix(events->str,
                                   "-0a:5+1 P0:5+1=EAGAIN +0a:5+1"));
    g_string_truncate(events, 0);
    /* A second, some hundred calls at most, and the last one at its end. */
    g_assert_cmpint(now_us, ==, 1000 + 1000000);
    g_assert_cmpint(kernel_calls, <, 200);
    g_assert_cmpint(kernel_calls, ==, sleeps + 1);
    g_assert_cmpint(longest_sleep, ==, 10000);
    /* When it became long, and at the end */
    g_assert_cmpint(pinned_events, ==, 2);
    g_assert_cmpint(blocks[0].gmem.state.busy, ==, kernel_calls);
    teardown();
}

static void test_time_begins_anew(void)
{
    setup();
    blocks[0].pins[5] = 50;
    blocks[0].pins[7] = FOREVER;
    g_assert_cmpint(convert(0, 5, 5, true), ==, -EAGAIN);
    g_assert_cmpint(pages_done, ==, 2);
    model(0, 5, 2, true);
    /* After what the first page took, and the page between them. */
    g_assert_cmpint(now_us, ==, 1000 + 432750 + 350 + 1000000);
    teardown();
}

static void test_cut(void)
{
    setup();
    unregister_all();
    blocks[0].pins[7] = 4;
    blocks[0].pins[9] = 1;
    g_assert_cmpint(convert(0, 4, 8, true), ==, 0);
    model(0, 4, 8, true);
    expect("P0:4+8=EAGAIN P0:4+8=EAGAIN P0:4+8=EAGAIN P0:4+3 "
           "P0:7+5=EAGAIN P0:7+5=EAGAIN P0:7+5");
    teardown();
}

/* What was converted before the busy page stays so. */
static void test_cut_stays(void)
{
    setup();
    blocks[0].pins[7] = FOREVER;
    g_assert_cmpint(convert(0, 4, 8, true), ==, -EAGAIN);
    g_assert_cmpint(pages_done, ==, 3);
    model(0, 4, 3, true);
    teardown();
}

/*
 * A platform may hold pages that are private already, and a span over them
 * would be busy for ever: then runs are converted one by one.
 */
static void test_busy_in_between(void)
{
    setup();
    unregister_all();
    given(0, 6, 1);
    blocks[0].pins[6] = FOREVER;
    g_assert_cmpint(convert(0, 4, 6, true), ==, 0);
    model(0, 4, 6, true);
    expect("P0:4+6=EAGAIN P0:4+2 P0:7+3");
    g_assert_cmpint(sleeps, ==, 0);
    teardown();
}

static void test_nonsense_offset(void)
{
    setup();
    /* Says that it is the first page. */
    fail_call(1, EAGAIN, 5);
    g_assert_cmpint(convert(0, 4, 8, true), ==, 0);
    model(0, 4, 8, true);
    g_assert_cmpint(kernel_calls, ==, 7);
    teardown();
}

static void test_eintr(void)
{
    setup();
    unregister_all();
    fail_call(1, EINTR, 3);
    g_assert_cmpint(convert(0, 4, 1, true), ==, 0);
    model(0, 4, 1, true);
    expect("P0:4+1=EINTR P0:4+1=EINTR P0:4+1=EINTR P0:4+1");
    g_assert_cmpint(sleeps, ==, 0);
    g_assert_cmpint(blocks[0].gmem.state.busy, ==, 0);
    teardown();
}

static void test_eintr_for_ever(void)
{
    setup();
    tick_us = 10000;
    fail_call(1, EINTR, 200);
    g_assert_cmpint(convert(0, 4, 1, true), ==, -EAGAIN);
    g_assert_cmpint(kernel_calls, ==, 101);
    g_assert_true(g_str_has_suffix(events->str, "P0:4+1=EINTR +0a:4+1"));
    teardown();
}

static void test_interrupted_while_busy(void)
{
    const GuestMemfdRetry retry = { 1000000000, after_some_looks };

    setup();
    unregister_all();
    looks_left = 4;
    blocks[0].pins[6] = FOREVER;
    g_assert_cmpint(convert_retry(0, 4, 4, true, &retry), ==, -EINTR);
    g_assert_cmpint(pages_done, ==, 2);
    model(0, 4, 2, true);
    expect("P0:4+4=EAGAIN P0:4+4=EAGAIN P0:4+4=EAGAIN P0:4+2 P0:6+2=EAGAIN");
    teardown();
}

/* One second is not for all: the caller says how long. */
static void test_timeout(void)
{
    const GuestMemfdRetry retry = { 60000000, NULL };

    setup();
    blocks[0].pins[0] = FOREVER;
    g_assert_cmpint(convert_retry(0, 0, 1, true, &retry), ==, -EAGAIN);
    g_assert_cmpint(now_us, >=, 60000000);
    g_assert_cmpint(now_us, <, 61000000);
    teardown();
}

/* Failures: a chunk is converted as a whole, or not at all */

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

/* Pages that were private before stay so, and no listener hears of them. */
static void test_mixed_chunk_fails(void)
{
    setup();
    given(0, 5, 2);
    fail_call(1, ENOMEM, 1);
    g_assert_cmpint(convert(0, 3, 6, true), ==, -ENOMEM);
    expect("-0a:3+2 -0a:7+2 P0:3+6=ENOMEM +0a:3+2 +0a:7+2");
    g_assert_cmpint(reports, ==, 0);
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

/* What was shared before stays so. */
static void test_listener_refuses_late(void)
{
    setup();
    given(1, 39, 2);
    given(1, 45, 1);
    given(1, 50, 1);
    populate_fault = (Fault) { 4, 1, ENOSPC };
    g_assert_cmpint(convert(1, 30, 30, false), ==, -ENOSPC);
    expect("S1:39+12 +1a:39+2 +1b:40+1 +1a:45+1 +1b:45+1=ERROR "
           "-1a:45+1 -1b:45+1 "
           "-1a:39+2 -1b:40+1 P1:39+2 P1:45+1 P1:50+1");
    g_assert_cmpint(reports, ==, 0);
    teardown();
}

/* If the kernel does not take it back, the state is what the kernel has. */
static void test_put_back_refused(void)
{
    setup();
    given(0, 5, 1);
    given(0, 7, 1);
    blocks[0].pins[5] = FOREVER;
    populate_fault = (Fault) { 2, 1, ENOSPC };
    g_assert_cmpint(convert(0, 5, 3, false), ==, -ENOSPC);
    model(0, 5, 1, false);
    expect("S0:5+3 +0a:5+1 +0a:7+1=ERROR -0a:7+1 "
           "-0a:5+1 P0:5+1=EAGAIN +0a:5+1 P0:7+1");
    g_assert_cmpint(reports, ==, 1);
    g_assert_cmpint(vm_stops, ==, 0);
    /* A guest may be able to cause that again and again. */
    given(0, 5, 0);
    populate_fault = (Fault) { 1, 1, ENOSPC };
    blocks[0].pins[7] = FOREVER;
    g_assert_cmpint(convert(0, 7, 1, false), ==, -ENOSPC);
    model(0, 7, 1, false);
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
    g_assert_cmpint(vm_stops, ==, 0);
    teardown();
}

/* A page that QEMU cannot map stays hidden, and private. */
static void test_cannot_be_shown(void)
{
    setup();
    given(0, 5, 4);
    blocks[0].unmappable[7] = true;
    g_assert_cmpint(convert(0, 5, 4, false), ==, -ENOMEM);
    expect("S0:5+4 U0:7=ERROR P0:5+4");
    g_assert_cmpint(reports, ==, 0);
    blocks[0].unmappable[7] = false;
    g_assert_cmpint(convert(0, 5, 4, false), ==, 0);
    model(0, 5, 4, false);
    teardown();
}

/* If the kernel does not take that back, the VM must not run on. */
static void test_cannot_be_shown_nor_hidden(void)
{
    setup();
    given(0, 5, 1);
    blocks[0].unmappable[5] = true;
    fail_call(2, ENOMEM, 1);
    g_assert_cmpint(convert(0, 5, 1, false), ==, -ENOMEM);
    g_assert_cmpint(vm_stops, ==, 1);
    blocks[0].private[5] = true;
    blocks[0].unmappable[5] = false;
    teardown();
}

/* Locks, and others meanwhile */

static bool hook_had_bql;

static void look_at_bql(unsigned block, uint64_t first, bool private)
{
    hook_had_bql = have_bql;
}

/* It is held for a chunk, and only where there are listeners. */
static void test_bql(void)
{
    unsigned i;

    setup();
    kernel_hook = look_at_bql;
    for (i = 0; i < 2; i++) {
        g_assert_cmpint(convert(0, 1, 1, !i), ==, 0);
        g_assert_true(hook_had_bql);
        g_assert_false(have_bql);

        bql_lock();
        g_assert_cmpint(convert(0, 2, 1, !i), ==, 0);
        g_assert_true(hook_had_bql);
        g_assert_true(have_bql);
        bql_unlock();
    }
    /* It is not held while a busy page is waited for. */
    bql_taken = 0;
    blocks[0].pins[9] = 3;
    g_assert_cmpint(convert(0, 9, 1, true), ==, 0);
    g_assert_cmpint(bql_taken, ==, 4);
    model(0, 9, 1, true);
    teardown();
}

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

static QemuThread visitor;

static void *come_to_block_0(void *opaque)
{
    bql_lock();
    register_listener(&blocks[0].listeners[2]);
    bql_unlock();
    return NULL;
}

/* It is in the list, and asks for populated pages while a chunk is converted */
static void first_listener_comes(unsigned block, uint64_t first, bool private)
{
    kernel_hook = NULL;
    qemu_thread_create(&visitor, "visitor", come_to_block_0, NULL,
                       QEMU_THREAD_JOINABLE);
    while (!qatomic_read(&blocks[0].manager.count)) {
        sched_yield();
    }
}

static void test_first_listener_comes(void)
{
    unsigned fails;

    for (fails = 0; fails < 2; fails++) {
        setup();
        unregister_all();
        kernel_hook = first_listener_comes;
        if (fails) {
            fail_call(1, ENOMEM, 1);
        }
        g_assert_cmpint(convert(0, 5, 1, true), ==, fails ? -ENOMEM : 0);
        qemu_thread_join(&visitor);
        expect(fails ? "P0:5+1=ENOMEM" : "P0:5+1");
        model(0, 5, 1, !fails);
        g_assert_cmpint(blocks[0].listeners[2].mapped[5], ==, fails);
        /* From now on it is notified. */
        g_assert_cmpint(convert(0, 7, 1, true), ==, 0);
        expect("-0c:7+1 P0:7+1");
        model(0, 7, 1, true);
        teardown();
    }
}

/* There was no listener, so the BQL was not taken; and then there is one. */
static void come_after_the_look(void)
{
    blocks[0].manager.looked_at = NULL;
    bql_lock();
    register_listener(&blocks[0].listeners[2]);
    bql_unlock();
}

static void test_listener_comes_before_the_lock(void)
{
    setup();
    unregister_all();
    blocks[0].manager.looked_at = come_after_the_look;
    g_assert_cmpint(convert(0, 5, 1, true), ==, 0);
    expect("-0c:5+1 P0:5+1");
    model(0, 5, 1, true);
    teardown();
}

/* A listener that has come since the BQL was not needed: a new attempt */
static void come_while_unlocked(void)
{
    unsigned i;

    bql_unlock_hook = NULL;
    bql_lock();
    for (i = 0; i < BLOCKS; i++) {
        register_listener(&blocks[i].listeners[2]);
    }
    bql_unlock();
}

static void test_listener_goes_and_comes(void)
{
    setup();
    bql_unlock_hook = come_while_unlocked;
    g_assert_cmpint(convert(0, 5, 1, true), ==, 0);
    model(0, 5, 1, true);
    g_assert_cmpint(convert(0, 5, 1, false), ==, 0);
    expect("-0a:5+1 P0:5+1 S0:5+1 +0c:5+1 +0a:5+1");
    model(0, 5, 1, false);
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
    expect("P0:0+5 P0:5+145=ENOMEM S0:0+1 P0:0+150");
    guest_memfd_state_launched(&blocks[0].gmem);
    g_assert_cmpint(convert(0, 7, 1, false), ==, 0);
    expect("S0:7+1 +0a:7+1");
    model(0, 0, PAGES, true);
    model(0, 7, 1, false);
    teardown();
}

/* After a reset */
static void test_hidden_until_reset(void)
{
    setup();
    unregister_all();
    given(0, 5, 2);
    guest_memfd_state_hide(&blocks[0].gmem);
    g_assert_true(guest_memfd_any_private(&blocks[0].gmem, 0, 1));
    memset(blocks[0].private, 0, PAGES);
    guest_memfd_state_reset(&blocks[0].gmem);
    model(0, 0, PAGES, false);
    g_assert_cmpint(blocks[0].gmem.state.to_private, ==, 0);
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

static void *share_block_1(void *opaque)
{
    g_assert_cmpint(convert(1, 6, 4, false), ==, 0);
    return NULL;
}

/* Another block is converted meanwhile; the same block waits. */
static void test_parallel(void)
{
    QemuThread first, second;

    setup();
    unregister_all();
    qemu_sem_init(&inside, 0);
    qemu_sem_init(&leave, 0);
    g_string_free(events, true);
    events = NULL;
    kernel_hook = stay_inside;
    qemu_thread_create(&first, "first", convert_block_1, NULL,
                       QEMU_THREAD_JOINABLE);
    qemu_sem_wait(&inside);
    qemu_thread_create(&second, "second", share_block_1, NULL,
                       QEMU_THREAD_JOINABLE);
    g_assert_cmpint(convert(0, 0, 3, true), ==, 0);
    g_assert_cmpint(convert(2, 0, 3, true), ==, 0);
    /* About to be private counts as private. */
    g_assert_true(guest_memfd_any_private(&blocks[1].gmem, 3 * page_size, 1));
    qemu_sem_post(&leave);
    qemu_thread_join(&first);
    qemu_thread_join(&second);
    qemu_sem_destroy(&inside);
    qemu_sem_destroy(&leave);
    model(0, 0, 3, true);
    model(2, 0, 3, true);
    model(1, 3, 3, true);
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
      "-1a:48+2 -1b:48+2 P1:48+2 -2a:10+2 P2:10+2" },
    { "three blocks, one of them by an alias", 249, 53, true, 0,
      "-0a:99+1 -0b:99+1 P0:99+1 -1a:0+50 -1b:40+10 P1:0+50 "
      "-2a:10+2 P2:10+2" },
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
    hwaddr done;
    int ret = guest_memfd_convert_gpa(gpa, size, private, &a_second, &done);

    g_assert_cmpint(done % page_size, ==, 0);
    g_assert_cmpint(done <= size, ==, true);
    g_assert_cmpint(ret == 0 && done != size, ==, false);
    pages_done = done / page_size;
    return ret;
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
    g_assert_cmpint(sections_seen, <=, 2 * MAP_SECTIONS);
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
    /* Once to check, and once to convert */
    g_assert_cmpint(sections_seen, ==, 4);
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
    expect("S0:10+2 +0a:10+2 S2:75+1 +2a:75+1 +2b:75+1 S1:130+3 +1a:130+3");
    model(0, 10, 2, false);
    model(1, 130, 3, false);
    model(2, 75, 1, false);
    teardown();
}

/* What was converted stays so, and the caller learns how far that was. */
static void test_gpa_half_way(void)
{
    setup();
    fail_call(2, ENOMEM, 1);
    g_assert_cmpint(convert_gpa(P(298), P(4), true), ==, -ENOMEM);
    g_assert_cmpint(pages_done, ==, 2);
    expect("-1a:48+2 -1b:48+2 P1:48+2 -2a:10+2 P2:10+2=ENOMEM +2a:10+2");
    model(1, 48, 2, true);
    teardown();
}

/* A guest can ask for many pieces: the caller is asked between them, too. */
static void test_gpa_interrupted(void)
{
    const GuestMemfdRetry retry = { 1000000, after_some_looks };
    hwaddr done;

    setup();
    unregister_all();
    looks_left = 1;
    g_assert_cmpint(guest_memfd_convert_gpa(P(249), P(53), true, &retry,
                                            &done), ==, -EINTR);
    g_assert_cmpint(done, ==, P(51));
    expect("P0:99+1 P1:0+50");
    model(0, 99, 1, true);
    model(1, 0, 50, true);
    teardown();
}

static void test_gpa_differs(void)
{
    setup();
    given(1, 48, 2);
    g_assert_cmpint(guest_memfd_gpa_differs(P(298), P(2), true), ==, 0);
    g_assert_cmpint(guest_memfd_gpa_differs(P(298), P(2), false), ==, 1);
    g_assert_cmpint(guest_memfd_gpa_differs(P(298), P(4), true), ==, 1);
    g_assert_cmpint(guest_memfd_gpa_differs(P(297), P(1), false), ==, 0);
    g_assert_cmpint(guest_memfd_gpa_differs(P(120), P(1), false), ==, 0);
    g_assert_cmpint(guest_memfd_gpa_differs(P(120), P(1), true), ==, -EINVAL);
    g_assert_cmpint(guest_memfd_gpa_differs(1, P(1), true), ==, -EINVAL);
    g_assert_cmpint(views, ==, 0);
    teardown();
}

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
    g_assert_cmpint(pages_done, ==, 2);
    expect("Q298+2S Q300+2S=ERROR Q300+2P");
    /* What was so before is left alone when a chunk is put back. */
    g_assert_cmpint(convert_gpa(P(301), P(1), false), ==, 0);
    fail_call(9, EIO, 1);
    g_assert_cmpint(convert_gpa(P(298), P(4), false), ==, -EIO);
    expect("Q301+1S Q298+2S Q300+2S=ERROR Q300+1P");
    g_assert_cmpint(guest_memfd_gpa_differs(P(298), P(4), false), ==, 1);
    g_assert_cmpint(convert_gpa(P(298), P(4), false), ==, 0);
    g_assert_cmpint(guest_memfd_gpa_differs(P(298), P(4), false), ==, 0);
    expect("Q298+2S Q300+2S");
    separate = false;
    teardown();
}

/* The same pages at two addresses */
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
    uint64_t first = g_rand_int_range(rand, 0, PAGES);
    uint64_t pages = g_rand_int_range(rand, 0, PAGES - first + 1);
    unsigned block = g_rand_int_range(rand, 0, BLOCKS);
    bool private = g_rand_boolean(rand);
    uint64_t done;
    int ret = guest_memfd_convert(&blocks[block].gmem, first * page_size,
                                  pages * page_size, private,
                                  g_rand_boolean(rand) ? NULL : &a_second,
                                  &done);

    if (apply) {
        model(block, first, done / page_size, private);
    }
    return ret;
}

/* Runs of both states */
static void prepare_mixed(void)
{
    unsigned i;

    for (i = 0; i < 5; i++) {
        given(0, 10 * i, 3 + i);
    }
}

/*
 * Every call fails in its turn, with each error; a page that somebody may hold
 * has all runs converted by a call each.
 */
static void test_fault_everywhere(void)
{
    static const int errors[] = { EAGAIN, EINTR, ENOMEM, EIO };
    unsigned private, e, at, calls;

    for (private = 0; private < 2; private++) {
        setup();
        prepare_mixed();
        blocks[0].pins[11] = FOREVER;
        g_assert_cmpint(convert(0, 0, 60, private), ==, 0);
        model(0, 0, 60, private);
        calls = kernel_calls;
        g_assert_cmpint(calls, ==, private ? 6 : 1);
        teardown();

        for (e = 0; e < ARRAY_SIZE(errors); e++) {
            for (at = 1; at <= calls; at++) {
                int ret;

                setup();
                prepare_mixed();
                blocks[0].pins[11] = FOREVER;
                fail_call(at, errors[e], 1);
                ret = convert(0, 0, 60, private);
                g_assert_cmpint(ret, ==, e < 2 ? 0 : -errors[e]);
                model(0, 0, pages_done, private);
                g_assert_cmpint(reports, ==, 0);
                teardown();
            }
        }
    }
}

static void test_refused_everywhere(void)
{
    unsigned at, calls;

    setup();
    prepare_mixed();
    g_assert_cmpint(convert(0, 0, 60, false), ==, 0);
    model(0, 0, 60, false);
    calls = populates;
    g_assert_cmpint(calls, >, 5);
    teardown();

    for (at = 1; at <= calls; at++) {
        setup();
        prepare_mixed();
        populate_fault = (Fault) { at, 1, ENOSPC };
        g_assert_cmpint(convert(0, 0, 60, false), ==, -ENOSPC);
        g_assert_cmpint(pages_done, ==, 0);
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
            blocks[k].gmem.state.warned = false;
        }
        kernel_calls = 0;
        populates = 0;
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
            reports = 0;
            for (k = 0; k < BLOCKS; k++) {
                GuestMemfdState *s = &blocks[k].gmem.state;
                uint64_t runs;

                s->to_private = guest_memfd_private_pages(&blocks[k].gmem,
                                                          &runs);
                s->to_shared = 0;
            }
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
            uint64_t runs;

            guest_memfd_any_private(&blocks[i].gmem, 7, 100 * page_size);
            g_assert_cmpint(guest_memfd_private_pages(&blocks[i].gmem, &runs),
                            <=, PAGES);
            g_assert_cmpint(runs, <=, PAGES);
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
    reports = 1;
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
        uint64_t done;

        for (block = 0; block < BLOCKS; block++) {
            GuestMemfd *gmem = &blocks[block].gmem;

            g_assert_cmpint(guest_memfd_convert(gmem, first * page_size,
                                                pages * page_size, private,
                                                &a_second, &done), ==, 0);
            model(block, first, pages, private);
            g_assert_cmpint(guest_memfd_any_private(gmem, first * page_size,
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
    { "one call a span, one notification a run (prior art 5)", test_span },
    { "a listener hears of what it has registered", test_sections },
    { "ranges that are none are refused", test_bad_ranges },
    { "a block without private memory is shared", test_no_private_memory },
    { "queries", test_queries },
    { "a large request is converted in chunks", test_chunks },
    { "and can be interrupted between them", test_interrupted_between_chunks },
    { "what is so already takes no chunk", test_sparse_chunks },
    { "a launch converts a block with one call", test_whole_block },
    { "a page that is busy for a moment", test_busy_for_a_moment },
    { "a page that is busy for ever: a second (prior art 1)",
      test_busy_for_ever },
    { "the second begins anew with progress", test_time_begins_anew },
    { "what is before a busy page goes first (prior art 1)", test_cut },
    { "and stays converted if that stays busy", test_cut_stays },
    { "a page that is private already may be busy", test_busy_in_between },
    { "an offset that does not help", test_nonsense_offset },
    { "an interrupted call is made again", test_eintr },
    { "but not for ever", test_eintr_for_ever },
    { "waiting for a busy page can be interrupted",
      test_interrupted_while_busy },
    { "the caller says how long", test_timeout },
    { "other errors are final, and the chunk is put back (prior art 3)",
      test_error_at_once },
    { "a mixed chunk is put back (prior art 4)", test_mixed_chunk_fails },
    { "a listener refuses: the chunk is put back (prior art 4)",
      test_listener_refuses },
    { "a listener refuses late: the chunk is put back (prior art 4)",
      test_listener_refuses_late },
    { "the kernel does not take it back: the state is the kernel's",
      test_put_back_refused },
    { "a listener cannot map again what it had", test_listener_fails_again },
    { "what cannot be mapped stays hidden", test_cannot_be_shown },
    { "if it cannot stay private, either, the VM stops",
      test_cannot_be_shown_nor_hidden },
    { "the BQL is held for a chunk, for listeners", test_bql },
    { "nobody listens: the BQL is not taken", test_nobody_listens },
    { "the first listener comes meanwhile", test_first_listener_comes },
    { "the first listener comes before the lock",
      test_listener_comes_before_the_lock },
    { "a listener comes between two requests", test_listener_goes_and_comes },
    { "before a launch is finished nobody is notified", test_launching },
    { "a reset hides pages, and shares all of them", test_hidden_until_reset },
    { "blocks are converted in parallel", test_parallel },
    { "gpa: not aligned", test_gpa_unaligned },
    { "gpa: what is behind the range is not looked at", test_gpa_cost },
    { "gpa: all of 52 bits becomes shared", test_gpa_all_shared },
    { "gpa: an error tells how far it came", test_gpa_half_way },
    { "gpa: interrupted between blocks", test_gpa_interrupted },
    { "gpa: queries", test_gpa_differs },
    { "gpa: separate memory", test_gpa_separate },
    { "gpa: an alias twice is converted once", test_gpa_alias_twice },
    { "a fault at every call", test_fault_everywhere },
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
