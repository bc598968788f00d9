/*
 * Random conversions, writes and checks, with a record of what memory should
 * contain
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include "firmware.h"

#define MAX_PAGES       2048
#define MAX_TOGETHER    16              /* pages in a step */
#define MAX_STEPS       1000000000
#define STRIDE          512             /* 8 words a page */

/* What is known of a page. */
typedef struct PageRecord {
    uint32_t written;           /* by which step; 0: contents unknown */
    bool state_known;
    bool private;
} PageRecord;

typedef struct Run {
    Cpu *cpu;
    const Command *c;
    uint64_t seed;
    uint64_t gpa;
    PageRecord *pages;
    uint64_t written, checked, converted, busy;
} Run;

static PageRecord records[MAX_CPUS][MAX_PAGES];

static uint64_t seed_of(const Run *r, uint32_t step)
{
    return r->seed ^ (uint64_t)step << 32;
}

static void write_pages(Run *r, uint64_t first, uint64_t n, uint32_t step)
{
    uint64_t i;

    fill_pages(r->gpa + first * PAGE, n, seed_of(r, step), STRIDE);
    for (i = first; i < first + n; i++) {
        r->pages[i].written = step;
    }
    r->written += n;
}

static bool check_page(Run *r, uint64_t page)
{
    const PageRecord *p = &r->pages[page];
    uint64_t gpa = r->gpa + page * PAGE;
    int64_t state;
    Wrong wrong;

    if (p->written) {
        if (!pages_are_filled(gpa, 1, seed_of(r, p->written), STRIDE, &wrong)) {
            fail(r->cpu->number, r->c,
                 "gpa 0x%lx wanted 0x%lx found 0x%lx, written by step %ld",
                 wrong.gpa, wrong.wanted, wrong.found, (uint64_t)p->written);
            return false;
        }
        r->checked++;
    }
    if (p->state_known && model_present) {
        state = ask_model(MODEL_STATE, gpa, 1, 0);
        if (state != p->private) {
            fail(r->cpu->number, r->c,
                 "gpa 0x%lx should be %s, is %s", gpa,
                 state_names[p->private], state_names[state]);
            return false;
        }
    }
    return true;
}

static bool check_pages(Run *r, uint64_t first, uint64_t n)
{
    uint64_t i;

    for (i = first; i < first + n; i++) {
        if (!check_page(r, i)) {
            return false;
        }
    }
    return true;
}

/*
 * Busy pages keep their state, and so does the rest of the range in that file;
 * but a range may be in several files.
 */
static bool convert_some(Run *r, uint64_t first, uint64_t n, State state)
{
    uint64_t gpa = r->gpa + first * PAGE;
    int64_t ret = convert_pages(r->c->method, gpa, n, state);
    bool busy = ret == EAGAIN || ret == -EAGAIN;
    uint64_t i;

    if (ret && !busy) {
        fail(r->cpu->number, r->c,
             "gpa 0x%lx, %ld pages to %s: returned %ld", gpa, n,
             state_names[state], ret);
        return false;
    }
    for (i = first; i < first + n; i++) {
        PageRecord *p = &r->pages[i];
        bool same = p->state_known && p->private == (state == PRIVATE);

        if (!same && !r->c->preserve) {
            p->written = 0;
        }
        if (!same) {
            p->private = state == PRIVATE;
            p->state_known = !busy;
        }
    }
    r->converted += busy ? 0 : n;
    r->busy += busy;
    return true;
}

void run_random(Cpu *cpu, const Command *c)
{
    Run r = { cpu, c, c->arg[0], c->arg[2], records[cpu->number] };
    uint64_t pages = c->arg[3], state = scramble(c->arg[0]), step, i;

    if (pages > MAX_PAGES || c->arg[1] > MAX_STEPS) {
        fail(cpu->number, c, "at most %d pages and %d steps", MAX_PAGES,
             MAX_STEPS);
        return;
    }
    if (c->method == BY_PORT && c->convert && !model_present) {
        fail(cpu->number, c, "there is no model");
        return;
    }
    for (i = 0; i < pages; i++) {
        r.pages[i] = (PageRecord) { 0 };
    }
    for (step = 1; step <= c->arg[1] && !run_is_over(); step++) {
        uint64_t first, n, kind;

        state = scramble(state);
        first = state % pages;
        n = 1 + (state >> 32) % MAX_TOGETHER;
        n = n < pages - first ? n : pages - first;
        kind = state >> 40 & 3;
        if (kind == 0 && c->convert) {
            if (!convert_some(&r, first, n, state >> 48 & 1)) {
                return;
            }
        } else if (kind <= 1) {
            write_pages(&r, first, n, step);
        } else if (!check_pages(&r, first, n)) {
            return;
        }
    }
    if (check_pages(&r, 0, pages)) {
        ok_saying(cpu->number, c,
                  "%ld pages written, %ld checked, %ld converted, %ld busy",
                  r.written, r.checked, r.converted, r.busy);
    }
}
