/*
 * RAM blocks that are a KVM guest_memfd: which pages are private, and how
 * that changes
 *
 * One request at a time.  A request claims its ranges before all else and
 * gives them back at its end.  Nobody else changes the state of a page that
 * is claimed, so requests that have no page in common do not wait for each
 * other, and a request knows what to undo: the pages whose state differed
 * when it began (@todo), and does not any more.
 *
 * Locks.  The BQL is taken before a block's state.lock, and only one such
 * lock is held at a time.  Neither is held while the kernel converts, which
 * may take long; but a BQL that the caller holds stays held.  Such callers
 * are launch and reset, when no vCPU runs.  Who waits for a claim holds
 * neither and has claimed nothing, so there is no circle of waiting.
 *
 * Discard listeners (VFIO and the like) map pages, which pins them.  No
 * listener maps a page that is private or on its way there:
 *
 * - The bitmap of RamBlockAttributes and the list of listeners are touched
 *   with the BQL held only.  A listener that registers learns from that bitmap
 *   what to map, whether a conversion is under way or not.
 * - A page's bit is set only while the page is shared and nobody is about to
 *   change that: to private, it is cleared before the kernel is asked; to
 *   shared, it is set after the kernel has answered.
 * - Listeners are told when a bit changes, without giving up the BQL in
 *   between.  So a listener that registers meanwhile either finds the bit as
 *   it will be, or is told.
 *
 * Contents are the kernel's affair.  Nothing is discarded here: one page
 * serves both states, and its memory stays allocated.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "system/address-spaces.h"
#include "system/guest-memfd.h"
#include "system/guest-memfd-compat.h"
#include "system/memory-internal.h"
#include "gmem/trace.h"

/* Pages of state that are looked at before others get the lock. */
#define PAGES_AT_A_TIME (1 << 20)

/*
 * What holds a page back is mostly gone soon: an access of the guest or of a
 * device.  Up to 60 ms were seen on a busy host.
 */
#define PATIENCE_US 1000000
#define MIN_DELAY_US 50
#define MAX_DELAY_US 10000

/* After so many failures, what lies before the busy page goes first. */
#define FAILURES_BEFORE_SPLIT 3

/* GuestMemfdRun: pages [@first, @end) of a block */
typedef struct GuestMemfdRun {
    uint64_t first;
    uint64_t end;
} GuestMemfdRun;

/*
 * GuestMemfdClaim: a range of a block that one request converts
 * @pages: the range
 * @todo: a bit a page of the range; set if its state is to change
 */
struct GuestMemfdClaim {
    GuestMemfd *gmem;
    GuestMemfdRun pages;
    unsigned long *todo;
    QTAILQ_ENTRY(GuestMemfdClaim) next;
};

/*
 * Request: what one call of guest_memfd_convert() is about
 * @claims: @n ranges without a page in common, by block and offset
 */
typedef struct Request {
    GuestMemfdClaim *claims;
    unsigned n;
    bool to_private;
} Request;

/*
 * Patience: how long to wait for pages that somebody holds
 * @deadline: when to give up, in microseconds; 0 if nothing failed yet
 * @delay: to wait next time, in microseconds
 * @failures: so far
 *
 * The first two begin anew when some page has been converted: what counts is
 * that nothing goes on.
 */
typedef struct Patience {
    int64_t deadline;
    unsigned delay;
    unsigned failures;
} Patience;

#define PATIENCE_INIT { .delay = MIN_DELAY_US }

void guest_memfd_state_init(GuestMemfd *gmem, bool can_be_private)
{
    GuestMemfdState *s = &gmem->state;

    qemu_mutex_init(&s->lock);
    qemu_cond_init(&s->released);
    QTAILQ_INIT(&s->claims);
    s->pages = gmem->rb->max_length / qemu_real_host_page_size();
    if (can_be_private) {
        s->private = bitmap_new(s->pages);
    }
}

void guest_memfd_state_destroy(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;

    assert(QTAILQ_EMPTY(&s->claims));
    g_free(s->private);
    qemu_cond_destroy(&s->released);
    qemu_mutex_destroy(&s->lock);
}

bool guest_memfd_any_private(GuestMemfd *gmem, uint64_t offset, uint64_t size)
{
    GuestMemfdState *s = &gmem->state;
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t page = offset / page_size;
    uint64_t end;

    if (!s->private || !size || page >= s->pages) {
        return false;
    }
    end = size - 1 > UINT64_MAX - offset
          ? s->pages : MIN(s->pages, (offset + (size - 1)) / page_size + 1);

    while (page < end) {
        uint64_t stop = MIN(end, page + PAGES_AT_A_TIME);

        QEMU_LOCK_GUARD(&s->lock);
        if (find_next_bit(s->private, stop, page) < stop) {
            return true;
        }
        page = stop;
    }
    return false;
}

uint64_t guest_memfd_private_runs(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;
    const uint64_t words = s->private ? BITS_TO_LONGS(s->pages) : 0;
    unsigned long before = 0;
    uint64_t runs = 0, i = 0;

    while (i < words) {
        uint64_t stop = MIN(words, i + BITS_TO_LONGS(PAGES_AT_A_TIME));

        QEMU_LOCK_GUARD(&s->lock);
        for (; i < stop; i++) {
            unsigned long word = s->private[i];

            /* A run starts where the page before is shared. */
            runs += ctpopl(word & ~(word << 1 | before));
            before = word >> (BITS_PER_LONG - 1);
        }
    }
    return runs;
}

/* The kernel has changed these pages. */
static void set_state(GuestMemfd *gmem, GuestMemfdRun run, bool private)
{
    GuestMemfdState *s = &gmem->state;
    uint64_t count = run.end - run.first;

    QEMU_LOCK_GUARD(&s->lock);
    if (private) {
        bitmap_set(s->private, run.first, count);
        s->private_pages += count;
        s->to_private += count;
    } else {
        bitmap_clear(s->private, run.first, count);
        s->private_pages -= count;
        s->to_shared += count;
    }
}

/*
 * The next run behind @run of pages that the request is about and that are
 * @private now.  A run of no pages at the start of the range finds the first.
 */
static bool next_run(const GuestMemfdClaim *c, bool private,
                     GuestMemfdRun *run)
{
    const uint64_t start = c->pages.first;
    const uint64_t pages = c->pages.end - start;
    GuestMemfdState *s = &c->gmem->state;
    uint64_t page = run->end - start;

    for (;;) {
        uint64_t first, end;

        page = find_next_bit(c->todo, pages, page);
        if (page >= pages) {
            return false;
        }
        first = start + page;
        page = find_next_zero_bit(c->todo, pages, page);
        end = start + page;

        QEMU_LOCK_GUARD(&s->lock);
        if (private) {
            first = find_next_bit(s->private, end, first);
            end = find_next_zero_bit(s->private, end, first);
        } else {
            first = find_next_zero_bit(s->private, end, first);
            end = find_next_bit(s->private, end, first);
        }
        if (first < end) {
            *run = (GuestMemfdRun) { first, end };
            return true;
        }
    }
}

/*
 * TodoIter: goes through the runs of a request
 * @c: the claim that @run is in; NULL at first
 * @run: found last
 */
typedef struct TodoIter {
    GuestMemfdClaim *c;
    GuestMemfdRun run;
} TodoIter;

/*
 * Find the next run, in the order of the claims, of pages that the request is
 * about and that are @private now.  Returns false behind the last one.  There
 * is a claim, or nothing would be to do.
 */
static bool next_todo(const Request *r, bool private, TodoIter *it)
{
    if (!it->c) {
        it->c = r->claims;
        it->run.end = it->c->pages.first;
    }
    while (!next_run(it->c, private, &it->run)) {
        it->c++;
        if (it->c == r->claims + r->n) {
            return false;
        }
        it->run.end = it->c->pages.first;
    }
    return true;
}

/* Waits.  Returns false if @error is final, or if patience is at its end. */
static bool try_again(Patience *patience, int error)
{
    int64_t now;

    if (error != -EAGAIN && error != -EINTR) {
        return false;
    }
    now = g_get_monotonic_time();
    if (!patience->deadline) {
        patience->deadline = now + PATIENCE_US;
    }
    /* A call may take longer than that; then what is free has to go first. */
    if (now >= patience->deadline &&
        patience->failures >= FAILURES_BEFORE_SPLIT) {
        return false;
    }
    patience->failures++;
    if (error == -EAGAIN) {
        g_usleep(MAX(0, MIN(patience->delay, patience->deadline - now)));
        patience->delay = MIN(2 * patience->delay, MAX_DELAY_US);
    }
    return true;
}

/*
 * Have the kernel convert a run.  Returns 0 or -errno; then a part of it from
 * the start on may have been converted.
 */
static int change_run(GuestMemfd *gmem, GuestMemfdRun run, bool private,
                      Patience *patience)
{
    const uint64_t page_size = qemu_real_host_page_size();
    GuestMemfdRun part = run;

    while (part.first < run.end) {
        uint64_t busy = 0;
        int ret = kvm_guest_memfd_set_private(gmem->rb->fd,
                                              part.first * page_size,
                                              (part.end - part.first) *
                                              page_size, private, &busy);

        if (!ret) {
            set_state(gmem, part, private);
            part = (GuestMemfdRun) { part.end, run.end };
            patience->deadline = 0;
            patience->delay = MIN_DELAY_US;
            continue;
        }
        if (ret == -EAGAIN) {
            WITH_QEMU_LOCK_GUARD(&gmem->state.lock) {
                gmem->state.busy++;
            }
        }
        if (!try_again(patience, ret)) {
            return ret;
        }
        busy /= page_size;
        if (patience->failures >= FAILURES_BEFORE_SPLIT &&
            busy > part.first && busy < part.end) {
            part.end = busy;
        }
    }
    return 0;
}

/* Convert what is to do, up to the first error. */
static int change_all(Request *r)
{
    Patience patience = PATIENCE_INIT;
    TodoIter it = { NULL };
    int ret = 0;

    while (!ret && next_todo(r, !r->to_private, &it)) {
        ret = change_run(it.c->gmem, it.run, r->to_private, &patience);
    }
    return ret;
}

/* A guest may be able to have conversions fail: it must not fill the log. */
static bool may_complain(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;
    bool first;

    QEMU_LOCK_GUARD(&s->lock);
    first = !s->complained;
    s->complained = true;
    return first;
}

/*
 * Convert back what was converted.  If the kernel refuses, the state stays
 * what it really is.
 */
static void change_back(Request *r)
{
    Patience patience = PATIENCE_INIT;
    TodoIter it = { NULL };

    while (next_todo(r, r->to_private, &it)) {
        GuestMemfd *gmem = it.c->gmem;
        int ret = change_run(gmem, it.run, !r->to_private, &patience);

        if (!ret) {
            continue;
        }
        trace_guest_memfd_convert_stuck(gmem->inode, it.run.first, it.run.end,
                                        r->to_private, ret);
        if (may_complain(gmem)) {
            error_report("guest_memfd '%s': a failed conversion of pages 0x%"
                         PRIx64 " to 0x%" PRIx64 " to %s cannot be undone: %s",
                         memory_region_name(gmem->rb->mr), it.run.first,
                         it.run.end - 1,
                         r->to_private ? "private" : "shared",
                         strerror(-ret));
        }
    }
}

/* Sets @section to what a listener has registered of a run; false: nothing. */
static bool listens_to(const RamDiscardListener *rdl, GuestMemfdRun run,
                       MemoryRegionSection *section)
{
    const uint64_t page_size = qemu_real_host_page_size();

    *section = *rdl->section;
    return memory_region_section_intersect_range(section,
                                                 run.first * page_size,
                                                 (run.end - run.first) *
                                                 page_size);
}

/* Tell the listeners before @until, or all if that is NULL. */
static void discard_run(GuestMemfd *gmem, GuestMemfdRun run,
                        const RamDiscardListener *until)
{
    RamBlockAttributes *attributes = gmem->rb->attributes;
    MemoryRegionSection section;
    RamDiscardListener *rdl;

    bitmap_clear(attributes->bitmap, run.first, run.end - run.first);
    QLIST_FOREACH(rdl, &attributes->rdl_list, next) {
        if (rdl == until) {
            break;
        }
        if (listens_to(rdl, run, &section)) {
            rdl->notify_discard(rdl, &section);
        }
    }
}

/* Returns 0; or the error of a listener, and then no listener has the run. */
static int populate_run(GuestMemfd *gmem, GuestMemfdRun run)
{
    RamBlockAttributes *attributes = gmem->rb->attributes;
    MemoryRegionSection section;
    RamDiscardListener *rdl;

    bitmap_set(attributes->bitmap, run.first, run.end - run.first);
    QLIST_FOREACH(rdl, &attributes->rdl_list, next) {
        if (listens_to(rdl, run, &section)) {
            int ret = rdl->notify_populate(rdl, &section);

            if (ret) {
                discard_run(gmem, run, rdl);
                return ret;
            }
        }
    }
    return 0;
}

/*
 * Tell listeners that shared pages of the request will go.  Called with the
 * BQL held, as are the next two.
 * @until: stop at this run; NULL for all of the request
 */
static void discard_all(Request *r, const TodoIter *until)
{
    TodoIter it = { NULL };

    while (next_todo(r, false, &it)) {
        if (until && it.c == until->c && it.run.first == until->run.first) {
            return;
        }
        discard_run(it.c->gmem, it.run, NULL);
    }
}

/* Returns 0; or the error of a listener, and then none has any page of it. */
static int populate_all(Request *r)
{
    TodoIter it = { NULL };

    while (next_todo(r, false, &it)) {
        int ret = populate_run(it.c->gmem, it.run);

        if (ret) {
            discard_all(r, &it);
            return ret;
        }
    }
    return 0;
}

/* What is shared in spite of all is told to everybody, whoever fails. */
static void populate_again(Request *r)
{
    TodoIter it = { NULL };

    while (next_todo(r, false, &it)) {
        GuestMemfd *gmem = it.c->gmem;
        RamBlockAttributes *attributes = gmem->rb->attributes;
        MemoryRegionSection section;
        RamDiscardListener *rdl;

        bitmap_set(attributes->bitmap, it.run.first,
                   it.run.end - it.run.first);
        QLIST_FOREACH(rdl, &attributes->rdl_list, next) {
            int ret = listens_to(rdl, it.run, &section)
                      ? rdl->notify_populate(rdl, &section) : 0;

            if (ret) {
                trace_guest_memfd_convert_unmapped(gmem->inode, it.run.first,
                                                   it.run.end, ret);
            }
            if (ret && may_complain(gmem)) {
                error_report("guest_memfd '%s': pages 0x%" PRIx64 " to 0x%"
                             PRIx64 " are shared again, but a device cannot "
                             "map them: %s",
                             memory_region_name(gmem->rb->mr), it.run.first,
                             it.run.end - 1, strerror(-ret));
            }
        }
    }
}

static void undo(Request *r)
{
    change_back(r);
    BQL_LOCK_GUARD();
    populate_again(r);
}

static int make_private(Request *r)
{
    int ret;

    {
        BQL_LOCK_GUARD();
        discard_all(r, NULL);
    }
    ret = change_all(r);
    if (ret) {
        undo(r);
    }
    return ret;
}

static int make_shared(Request *r)
{
    int ret = change_all(r);

    if (!ret) {
        BQL_LOCK_GUARD();
        ret = populate_all(r);
    }
    if (ret) {
        undo(r);
    }
    return ret;
}

static bool is_claimed(GuestMemfd *gmem, GuestMemfdRun pages)
{
    GuestMemfdClaim *c;

    QTAILQ_FOREACH(c, &gmem->state.claims, next) {
        if (c->pages.first < pages.end && pages.first < c->pages.end) {
            return true;
        }
    }
    return false;
}

/* Give back the first @n claims. */
static void release(Request *r, unsigned n)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdState *s = &c->gmem->state;

        QEMU_LOCK_GUARD(&s->lock);
        QTAILQ_REMOVE(&s->claims, c, next);
        qemu_cond_broadcast(&s->released);
    }
}

/* Claim as many as can be had.  Returns how many. */
static unsigned try_claim(Request *r)
{
    unsigned i;

    for (i = 0; i < r->n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdState *s = &c->gmem->state;

        QEMU_LOCK_GUARD(&s->lock);
        if (is_claimed(c->gmem, c->pages)) {
            break;
        }
        QTAILQ_INSERT_TAIL(&s->claims, c, next);
    }
    return i;
}

/* Wait until nobody claims any of these pages, without the BQL. */
static void wait_until_released(GuestMemfd *gmem, GuestMemfdRun pages)
{
    GuestMemfdState *s = &gmem->state;
    bool had_bql = bql_locked();

    if (had_bql) {
        bql_unlock();
    }
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        while (is_claimed(gmem, pages)) {
            qemu_cond_wait(&s->released, &s->lock);
        }
    }
    if (had_bql) {
        bql_lock();
    }
}

/*
 * Claim all of it.  Who cannot have all gives back what he has and waits for
 * the one that he lacks; then he is in nobody's way.
 */
static void claim(Request *r)
{
    unsigned n;

    while ((n = try_claim(r)) < r->n) {
        GuestMemfdClaim *c = &r->claims[n];

        release(r, n);
        trace_guest_memfd_convert_wait(c->gmem->inode, c->pages.first,
                                       c->pages.end);
        wait_until_released(c->gmem, c->pages);
    }
}

/*
 * Which pages have to change?  It takes a bit for each page of what is
 * claimed; there are no more claims than there are pages.
 * Returns 0 or -errno; sets @any if there are some.
 */
static int find_todo(Request *r, bool *any)
{
    unsigned i;

    *any = false;
    for (i = 0; i < r->n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdState *s = &c->gmem->state;
        uint64_t pages = c->pages.end - c->pages.first;
        uint64_t page, count;

        c->todo = bitmap_try_new(pages);
        if (!c->todo) {
            return -ENOMEM;
        }
        for (page = 0; page < pages; page += count) {
            count = MIN(pages - page, PAGES_AT_A_TIME);
            QEMU_LOCK_GUARD(&s->lock);
            bitmap_copy_with_src_offset(c->todo + BIT_WORD(page), s->private,
                                        c->pages.first + page, count);
        }
        if (r->to_private) {
            bitmap_complement(c->todo, c->todo, pages);
        }
        *any |= !bitmap_empty(c->todo, pages);
    }
    return 0;
}

static int compare_claims(const void *a, const void *b)
{
    const GuestMemfdClaim *x = a, *y = b;

    if (x->gmem != y->gmem) {
        return (uintptr_t)x->gmem < (uintptr_t)y->gmem ? -1 : 1;
    }
    return x->pages.first < y->pages.first ? -1
         : x->pages.first > y->pages.first;
}

/* Sort the claims, and merge those that overlap or meet. */
static void normalise(Request *r)
{
    unsigned i, n = 0;

    qsort(r->claims, r->n, sizeof(*r->claims), compare_claims);
    for (i = 0; i < r->n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdClaim *last = n ? &r->claims[n - 1] : NULL;

        if (last && last->gmem == c->gmem &&
            last->pages.end >= c->pages.first) {
            last->pages.end = MAX(last->pages.end, c->pages.end);
        } else {
            r->claims[n++] = *c;
        }
    }
    r->n = n;
}

/* Returns 0; or -EINVAL if a range is none, or cannot be private. */
static int add_range(Request *r, const GuestMemfdRange *range)
{
    const uint64_t page_size = qemu_real_host_page_size();
    const GuestMemfdState *s = &range->gmem->state;
    uint64_t first = range->offset / page_size;
    uint64_t count = range->size / page_size;

    if (!s->private) {
        return r->to_private ? -EINVAL : 0;
    }
    if (range->offset % page_size || range->size % page_size ||
        first > s->pages || count > s->pages - first) {
        return -EINVAL;
    }
    if (count) {
        r->claims[r->n++] = (GuestMemfdClaim) {
            .gmem = range->gmem,
            .pages = { first, first + count },
        };
    }
    return 0;
}

int guest_memfd_convert(const GuestMemfdRange *ranges, unsigned n,
                        bool to_private)
{
    g_autofree GuestMemfdClaim *claims = g_new0(GuestMemfdClaim, n);
    Request r = { .claims = claims, .to_private = to_private };
    unsigned i;
    bool any;
    int ret;

    for (i = 0; i < n; i++) {
        ret = add_range(&r, &ranges[i]);
        if (ret) {
            return ret;
        }
    }
    if (!r.n) {
        return 0;
    }
    normalise(&r);

    claim(&r);
    ret = find_todo(&r, &any);
    if (!ret && any) {
        ret = to_private ? make_private(&r) : make_shared(&r);
    }
    release(&r, r.n);
    trace_guest_memfd_convert(r.n, to_private, any, ret);

    for (i = 0; i < r.n; i++) {
        g_free(r.claims[i].todo);
    }
    return ret;
}

/*
 * GpaRequest: a range of guest physical addresses
 * @next, @end: what is not yet resolved; bytes
 * @gap: something in there has no state
 * @ranges: what has one
 */
typedef struct GpaRequest {
    hwaddr next;
    hwaddr end;
    bool gap;
    GArray *ranges;
} GpaRequest;

/*
 * A flatview_cb.  KVM has memory at whole pages only; what is left at the
 * edges of a region counts as none.
 */
static bool resolve(Int128 start, Int128 len, const MemoryRegion *mr,
                    hwaddr offset, void *opaque)
{
    GpaRequest *g = opaque;
    const uint64_t page_size = qemu_real_host_page_size();
    hwaddr region = int128_get64(start);
    hwaddr first, end;
    GuestMemfd *gmem;

    if (region >= g->end) {
        return true;
    }
    end = int128_get64(int128_min(int128_add(start, len),
                                  int128_make64(g->end)));
    first = ROUND_UP(MAX(region, g->next), page_size);
    end = ROUND_DOWN(end, page_size);
    gmem = mr->ram_block ? guest_memfd_from_host(mr->ram_block->host) : NULL;
    if (first < end && gmem && gmem->state.private) {
        GuestMemfdRange range = { gmem, offset + (first - region),
                                  end - first };

        if (range.offset % page_size == 0) {
            g->gap |= first > g->next;
            g->next = end;
            g_array_append_val(g->ranges, range);
        }
    }
    return false;
}

int guest_memfd_convert_gpa(hwaddr gpa, hwaddr size, bool to_private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    GpaRequest g = { .next = gpa, .end = gpa + size };
    FlatView *view;
    int ret;

    if (!size || gpa % page_size || size % page_size || g.end < gpa) {
        return -EINVAL;
    }

    /*
     * The view keeps its regions alive, and these their blocks.  Memory that
     * is unplugged meanwhile is converted like any other.
     */
    view = address_space_get_flatview(&address_space_memory);
    g.ranges = g_array_new(false, false, sizeof(GuestMemfdRange));
    flatview_for_each_range(view, resolve, &g);
    g.gap |= g.next < g.end;

    if (g.gap && to_private) {
        ret = -EINVAL;
    } else {
        ret = guest_memfd_convert((GuestMemfdRange *)g.ranges->data,
                                  g.ranges->len, to_private);
    }
    trace_guest_memfd_convert_gpa(gpa, size, to_private, g.ranges->len, ret);
    if (ret) {
        error_report("cannot convert 0x%" HWADDR_PRIx " bytes at gpa 0x%"
                     HWADDR_PRIx " to %s: %s", size, gpa,
                     to_private ? "private" : "shared", strerror(-ret));
    }
    g_array_free(g.ranges, true);
    flatview_unref(view);
    return ret;
}
