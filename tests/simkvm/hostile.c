/*
 * simkvm: a generator of hostile requests, and a reference for their results
 *
 * Each vCPU asks for page-state changes, sensible ones and others.  Some pages
 * belong to one vCPU; those around every edge of memory, all vCPUs convert.
 * Requests come in batches.  At the end of a batch no request is in flight,
 * and the state of every page is compared with a reference that knows the
 * requests and their answers only.
 *
 * Requests overlap in time, so more than one state may be right.  A granted
 * request took effect at some time between its begin and its end, so it can
 * have been a page's last one unless another granted one began after its end.
 * The reference keeps these times for each page.  An invalid request changed
 * nothing.
 *
<<<<<<< HEAD
 * A request that is right may be refused only if a call was made to fail, or
 * a page was pinned, in its time.  It was carried out up to some page, and the
 * guest does not learn how far: of each page, it may have been the last request
 * or not.
=======
 * A valid request may be refused only if a call was made to fail, or a page
 * was pinned, in its time.  It was carried out up to some page that the guest
 * does not know: for each page, it may have been the last request or not.
>>>>>>> h3
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"

#define EDGE 64                 /* pages of an edge, on either side */
#define OWN 256                 /* pages of one vCPU */
#define MAX_GPA (1ULL << 52)
#define RESERVED_BIT 5          /* of KVM_HC_MAP_GPA_RANGE, and those above */

/*
 * Area: memory of the guest that can be private
 */
typedef struct Area {
    uint64_t gpa, size;
    SimGmem *gmem;
    uint64_t offset;
} Area;

/*
 * Page: what is known of a page in this batch
 * @begun: when the last granted request began; 0: there is none
 * @ended: when the last request ended that may have made it shared, private
 * @private: its state at the begin of the batch
 */
typedef struct Page {
    uint64_t begun;
    uint64_t ended[2];
    bool private;
} Page;

/* File: a guest_memfd that areas are in */
typedef struct File {
    SimGmem *gmem;
    Page *pages;
} File;

struct SimHostile {
    SimVcpu *vcpu;
    uint64_t random;            /* state of the generator */
    GArray *done;               /* SimRequest, of this batch */
    SimRequest now;             /* the one that is under way */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Made once for a VM, by its first vCPU: no memory is plugged in later. */
static uint64_t vm_number;      /* that VM's */
static GArray *areas;           /* Area, by gpa */
static GArray *edges;           /* uint64_t, gpa */
static GArray *files;           /* File */
static GPtrArray *generators;   /* SimHostile */
static uint64_t now;            /* atomic: a clock of begins and ends */

/* --- what memory there is --- */

static int compare_areas(gconstpointer a, gconstpointer b)
{
    const Area *x = a, *y = b;

    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static File *file_of(const SimGmem *gmem)
{
    guint i;

    for (i = 0; i < files->len; i++) {
        File *f = &g_array_index(files, File, i);

        if (f->gmem == gmem) {
            return f;
        }
    }
    return NULL;
}

static void add_area(const SimSlot *slot)
{
    Area area = { slot->gpa, slot->size, slot->gmem, slot->offset };
    uint64_t ends[] = { slot->gpa, slot->gpa + slot->size };
    size_t i;

    if (!area.gmem) {
        /* A second address of memory, or a read-only one, as QEMU has it. */
        area.gmem = sim_gmem_at(slot->hva, &area.offset);
        if (!area.gmem) {
            return;
        }
        sim_gmem_unref(area.gmem);
    }
    g_array_append_val(areas, area);
    for (i = 0; i < G_N_ELEMENTS(ends); i++) {
        g_array_append_val(edges, ends[i]);
    }
    if (!file_of(area.gmem)) {
        uint64_t n, pages = area.gmem->size >> SIM_PAGE_SHIFT;
        File f = { area.gmem, g_new0(Page, pages) };

        pthread_mutex_lock(&f.gmem->lock);
        for (n = 0; n < pages; n++) {
            f.pages[n].private = sim_bitmap_test(&f.gmem->private, n);
        }
        pthread_mutex_unlock(&f.gmem->lock);
        g_array_append_val(files, f);
    }
}

/* Drops what is known of another VM: its files may be gone. */
static void begin_anew(void)
{
    guint i;

    if (!areas) {
        areas = g_array_new(FALSE, FALSE, sizeof(Area));
        edges = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        files = g_array_new(FALSE, FALSE, sizeof(File));
        generators = g_ptr_array_new();
    }
    for (i = 0; i < files->len; i++) {
        g_free(g_array_index(files, File, i).pages);
    }
    for (i = 0; i < generators->len; i++) {
        SimHostile *h = g_ptr_array_index(generators, i);

        g_array_set_size(h->done, 0);
    }
    g_array_set_size(areas, 0);
    g_array_set_size(edges, 0);
    g_array_set_size(files, 0);
}

/* With the lock held. */
static void find_areas(SimVm *vm)
{
    guint i;

    if (vm_number == vm->number) {
        return;
    }
    vm_number = vm->number;
    begin_anew();
    pthread_mutex_lock(&vm->lock);
    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *slot = g_ptr_array_index(vm->slots, i);

        if (slot->id >> 16 == 0) {
            add_area(slot);
        }
    }
    pthread_mutex_unlock(&vm->lock);
    g_array_sort(areas, compare_areas);
    if (!areas->len) {
        sim_violation("hostile: no memory can be private");
    }
}

/* The largest area */
static const Area *most_memory(void)
{
    const Area *found = &g_array_index(areas, Area, 0);
    guint i;

    for (i = 1; i < areas->len; i++) {
        const Area *a = &g_array_index(areas, Area, i);

        if (a->size > found->size) {
            found = a;
        }
    }
    return found;
}

SimHostile *sim_hostile_new(SimVcpu *vcpu, uint64_t seed)
{
    SimHostile *h = g_new0(SimHostile, 1);

    h->vcpu = vcpu;
    h->random = (seed + 1) * 0x9e3779b97f4a7c15ULL + vcpu->id;
    h->done = g_array_new(FALSE, FALSE, sizeof(SimRequest));
    pthread_mutex_lock(&lock);
    find_areas(vcpu->vm);
    g_ptr_array_add(generators, h);
    pthread_mutex_unlock(&lock);
    return h;
}

void sim_hostile_go_on(SimHostile *h, SimVcpu *vcpu)
{
    pthread_mutex_lock(&lock);
    h->vcpu = vcpu;
    find_areas(vcpu->vm);
    pthread_mutex_unlock(&lock);
}

/* --- requests --- */

static uint64_t draw(SimHostile *h, uint64_t below)
{
    return sim_draw(&h->random, below);
}

/* Pages in the middle of memory, for which no other vCPU asks */
static void draw_own(SimHostile *h, SimRequest *r)
{
    const Area *area = most_memory();
    uint64_t first = draw(h, OWN);

    r->own = true;
    r->gpa = area->gpa + ((area->size >> SIM_PAGE_SHIFT) / 2 +
                          (uint64_t)h->vcpu->id * OWN + first) * SIM_PAGE;
    r->pages = 1 + draw(h, draw(h, 8) ? MIN(16, OWN - first) : OWN - first);
}

/* Pages around an edge of memory, for which all vCPUs ask */
static void draw_edge(SimHostile *h, SimRequest *r)
{
    uint64_t edge = g_array_index(edges, uint64_t, draw(h, edges->len));
    uint64_t first = draw(h, 2 * EDGE);

    r->own = false;
    r->gpa = edge + first * SIM_PAGE - MIN(edge, EDGE * SIM_PAGE);
    r->pages = 1 + draw(h, draw(h, 8) ? 16 : 2 * EDGE - first);
}

static void draw_somewhere(SimHostile *h, SimRequest *r)
{
    if (draw(h, 2)) {
        draw_own(h, r);
    } else {
        draw_edge(h, r);
    }
}

/* An invalid request; most often its range is wrong */
static void draw_bad(SimHostile *h, SimRequest *r)
{
    static const uint64_t devices[] = {
        0xfec00000, 0xfed00000, 0xfee00000, 0xfffffffffffff000, 0xa0000,
        MAX_GPA - SIM_PAGE, MAX_GPA, 1ULL << 47,
    };

    r->own = false;
    switch (draw(h, 7)) {
    case 0:
        r->gpa += 1 + draw(h, SIM_PAGE - 1);
        break;
    case 1:
        r->pages = 0;
        break;
    case 2:
        r->pages = -1 - draw(h, 2 * EDGE);
        break;
    case 3:
        /* 2^64 bytes, and a few, from this page on. */
        r->pages += (1ULL << 52) - draw(h, 2) * (r->gpa >> SIM_PAGE_SHIFT);
        break;
    case 4:
        r->gpa = -SIM_PAGE * (1 + draw(h, 4));
        break;
    case 5:
        r->attributes = 1ULL << (RESERVED_BIT + draw(h, 64 - RESERVED_BIT));
        break;
    default:
        r->gpa = devices[draw(h, G_N_ELEMENTS(devices))];
        break;
    }
}

/* Has every page of the range memory?  It does not wrap around. */
static bool all_memory(uint64_t gpa, uint64_t size)
{
    guint i;

    for (i = 0; i < areas->len && size; i++) {
        const Area *a = &g_array_index(areas, Area, i);

        if (gpa - a->gpa < a->size) {
            uint64_t n = MIN(size, a->size - (gpa - a->gpa));

            gpa += n;
            size -= n;
        }
    }
    return !size;
}

/* Is it a valid request, which is granted if no call fails? */
static bool is_right(const SimRequest *r)
{
    uint64_t size = r->pages << SIM_PAGE_SHIFT;

    if (r->attributes >> RESERVED_BIT || r->gpa % SIM_PAGE || !r->pages ||
        size >> SIM_PAGE_SHIFT != r->pages || r->gpa + size < r->gpa) {
        return false;
    }
    return !r->private || all_memory(r->gpa, size);
}

/* Somebody holds a few pages for a moment. */
static void draw_pin(SimHostile *h)
{
    const Area *a = &g_array_index(areas, Area, draw(h, areas->len));
    SimRequest r = {};
    SimPin pin = { .size = SIM_PAGE * (1 + draw(h, 2)),
                   .times = 1 + draw(h, 6) };

    draw_somewhere(h, &r);
    if (r.gpa - a->gpa < a->size) {
        pin.file = a->gmem->number;
        pin.offset = a->offset + (r.gpa - a->gpa);
        sim_pin(&pin);
    }
}

const SimRequest *sim_hostile_draw(SimHostile *h)
{
    SimRequest *r = &h->now;
    uint64_t kind = draw(h, 1000);

    *r = (SimRequest) { .kind = SIM_MAP_GPA };
    r->private = draw(h, 2);
    draw_somewhere(h, r);
    if (kind < 100) {
        draw_bad(h, r);
    } else if (kind < 200) {
        r->kind = SIM_FAULT;
        r->pages = 1;
        /* Without memory, there would be nothing but to stop the guest. */
        if (!all_memory(r->gpa, SIM_PAGE)) {
            draw_own(h, r);
            r->pages = 1;
        }
    } else if (kind < 210) {
        r->kind = SIM_DEVICE_READ;
        r->gpa = 0xfed00000;
    } else if (kind < 240) {
        r->attributes = 1 + draw(h, 2);         /* page sizes */
    } else if (kind < 242) {
        /* The emulator waits for a moment, here and with pins. */
        r->kind = SIM_NO_ENTRY;
    } else if (kind < 250) {
        draw_pin(h);
    }
    r->failures = sim_counted(SIM_FAULTS_INJECTED) +
                  sim_counted(SIM_PINS_MET);
    r->begun = __atomic_add_fetch(&now, 1, __ATOMIC_SEQ_CST);
    return r;
}

void sim_hostile_answered(SimHostile *h, uint64_t answer)
{
    SimVm *vm = h->vcpu->vm;
    SimRequest *r = &h->now;
    uint64_t right, where;

    r->ended = __atomic_add_fetch(&now, 1, __ATOMIC_SEQ_CST);
    r->failures = sim_counted(SIM_FAULTS_INJECTED) +
                  sim_counted(SIM_PINS_MET) - r->failures;
    r->answer = answer;
    if (r->kind == SIM_FAULT) {
        /* A software-protected guest's memory fault converts nothing. */
        r->answer = vm->type == KVM_X86_SW_PROTECTED_VM ? EINVAL : 0;
        r->unsure = !r->answer && r->failures;
    } else if (r->kind != SIM_MAP_GPA) {
        return;
    } else {
        right = is_right(r) ? 0 : EINVAL;
        if (answer != right && (right || !r->failures)) {
            sim_violation("hostile: 0x%" PRIx64 " pages at 0x%" PRIx64 " to "
                          "%s: the guest gets %" PRIu64 ", expected %"
                          PRIu64, r->pages, r->gpa, r->private ? "private"
                          : "shared", answer, right);
        }
        r->unsure = answer && !right;
    }
    if (r->own && !r->answer && !r->unsure) {
        pthread_mutex_lock(&vm->lock);
        if (sim_state_differs(vm, r->gpa, r->pages, r->private, &where)) {
            sim_violation("hostile: 0x%" PRIx64 " pages at 0x%" PRIx64 " to "
                          "%s was granted, but 0x%" PRIx64 " is not",
                          r->pages, r->gpa, r->private ? "private" : "shared",
                          where);
        }
        pthread_mutex_unlock(&vm->lock);
    }
    if (!r->answer || r->unsure) {
        g_array_append_val(h->done, *r);
    }
}

/* --- the reference --- */

/* Records a request for all of its pages. */
static void enter(const SimRequest *r)
{
    uint64_t size = r->pages << SIM_PAGE_SHIFT;
    guint i;

    for (i = 0; i < areas->len; i++) {
        const Area *a = &g_array_index(areas, Area, i);
        uint64_t first = MAX(r->gpa, a->gpa);
        uint64_t end = MIN(r->gpa + size - 1, a->gpa + a->size - 1);
        Page *p, *last;

        if (first > end) {
            continue;
        }
        p = file_of(a->gmem)->pages +
            ((a->offset + (first - a->gpa)) >> SIM_PAGE_SHIFT);
        last = p + ((end - first) >> SIM_PAGE_SHIFT);
        for (; p <= last; p++) {
            p->ended[r->private] = MAX(p->ended[r->private], r->ended);
            if (!r->unsure) {
                p->begun = MAX(p->begun, r->begun);
            }
        }
    }
}

/* Can the page be in that state? */
static bool possible(const Page *p, bool private)
{
    return (!p->begun && private == p->private) ||
           (p->ended[private] && p->ended[private] > p->begun);
}

static void check_file(File *f)
{
    uint64_t n, pages = f->gmem->size >> SIM_PAGE_SHIFT;

    pthread_mutex_lock(&f->gmem->lock);
    for (n = 0; n < pages; n++) {
        bool private = sim_bitmap_test(&f->gmem->private, n);

        if (!possible(&f->pages[n], private)) {
            sim_violation("hostile: page 0x%" PRIx64 " of guest_memfd %"
                          PRIu64 " is %s, which nobody asked for last",
                          n, f->gmem->number, private ? "private" : "shared");
        }
        f->pages[n] = (Page) { .private = private };
    }
    pthread_mutex_unlock(&f->gmem->lock);
}

void sim_hostile_check(SimVcpu *vcpu)
{
    guint i, j;

    for (i = 0; i < generators->len; i++) {
        SimHostile *h = g_ptr_array_index(generators, i);

        for (j = 0; j < h->done->len; j++) {
            enter(&g_array_index(h->done, SimRequest, j));
        }
        g_array_set_size(h->done, 0);
    }
    for (i = 0; i < files->len; i++) {
        check_file(&g_array_index(files, File, i));
    }
}

/* --- the digest, for comparison with an emulator's state --- */

static void add_run(GString *text, uint64_t start, uint64_t end)
{
    if (start < end) {
        g_string_append_printf(text, "%" PRIx64 " %" PRIx64 "\n", start,
                               end - start);
    }
}

char *sim_hostile_digest(void)
{
    g_autoptr(GString) text = g_string_new("");
    uint64_t start = 0, end = 0;        /* of a run of private pages */
    guint i;

    for (i = 0; i < areas->len; i++) {
        const Area *a = &g_array_index(areas, Area, i);
        uint64_t page = a->offset >> SIM_PAGE_SHIFT;
        uint64_t behind = page + (a->size >> SIM_PAGE_SHIFT), next;

        pthread_mutex_lock(&a->gmem->lock);
        for (; page < behind; page = next) {
            uint64_t gpa = a->gpa + ((page << SIM_PAGE_SHIFT) - a->offset);

            next = sim_bitmap_run(&a->gmem->private, page, behind);
            if (!sim_bitmap_test(&a->gmem->private, page)) {
                continue;
            }
            if (gpa != end) {
                add_run(text, start, end);
                start = gpa;
            }
            end = gpa + ((next - page) << SIM_PAGE_SHIFT);
        }
        pthread_mutex_unlock(&a->gmem->lock);
    }
    add_run(text, start, end);
    return g_compute_checksum_for_string(G_CHECKSUM_SHA256, text->str,
                                         text->len);
}
