/*
 * Requests for conversion as a hostile guest makes them
 *
 * Each request has a shape, and each shape has its right answers.  All vCPUs
 * may convert the same pages, whose contents are then undefined; pages outside
 * of the range, but for ROM, have to stay as they are.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include "firmware.h"

#define MAX_TOGETHER    16              /* pages in a request */

/* Of a guest with less than 2 GiB of RAM. */
#define NOWHERE         0xa0000000
#define APIC            0xfee00000
#define ROM             0xc0000
#define LAST            0xfffffffffffff000

typedef enum Answer {
    CONVERTED,                          /* or busy */
    REFUSED,
    NOTHING_DONE,                       /* and that is right */
    ANY_ANSWER,
} Answer;

typedef struct Request {
    const char *shape;
    uint64_t gpa, pages;
    State state;
    Answer answer;
} Request;

/* Half of the requests are ordinary ones. */
static Request draw(const Command *c, uint64_t random)
{
    uint64_t first = random % c->arg[3];
    uint64_t some = 1 + (random >> 32) % MAX_TOGETHER;
    State state = random >> 48 & 1;
    uint64_t left = c->arg[3] - first;
    uint64_t gpa = c->arg[2] + first * PAGE;

    switch (random >> 40 & 15) {
    case 0:
        return (Request) { "unaligned", gpa + 1 + (random >> 20) % (PAGE - 1),
                           some, state, REFUSED };
    case 1:
        return (Request) { "empty", gpa, 0, state, REFUSED };
    case 2:
        return (Request) { "too long", gpa, 1ull << 52 | random, state,
                           REFUSED };
    case 3:
        return (Request) { "beyond RAM", NOWHERE, some, state,
                           state == PRIVATE ? REFUSED : NOTHING_DONE };
    case 4:
        return (Request) { "MMIO", APIC, some, state,
                           state == PRIVATE ? REFUSED : NOTHING_DONE };
    case 5:
        return (Request) { "ROM", ROM, some, state, ANY_ANSWER };
    case 6:
        /* Pages that could be converted, and others that cannot. */
        return (Request) { "from RAM to beyond", gpa,
                           (NOWHERE - gpa) / PAGE + some, PRIVATE, REFUSED };
    case 7:
        return (Request) { "last page of all", LAST, 1, PRIVATE, REFUSED };
    default:
        return (Request) { "plain", gpa, some < left ? some : left, state,
                           CONVERTED };
    }
}

/* KVM answers some by itself, with negative numbers. */
static bool is_right(const Command *c, const Request *q, int64_t ret)
{
    if (c->expect == EXPECT_ERRNO) {
        return ret == -(int64_t)c->expected;
    }
    switch (q->answer) {
    case CONVERTED:
        return ret == 0 || ret == EAGAIN;
    case REFUSED:
        return ret == EINVAL || ret == -EINVAL;
    case NOTHING_DONE:
        return ret == 0;
    default:
        return ret == 0 || ret == EAGAIN || ret == EINVAL || ret == -EINVAL;
    }
}

void run_hostile(Cpu *cpu, const Command *c)
{
    uint64_t random = scramble(c->arg[0]), converted = 0, refused = 0, step;

    if (c->method == BY_PORT && !model_present) {
        fail(cpu->number, c, "there is no model");
        return;
    }
    for (step = 1; step <= c->arg[1] && !run_is_over(); step++) {
        Request q = draw(c, random = scramble(random));
        int64_t ret = convert_pages(c->method, q.gpa, q.pages, q.state);

        if (!is_right(c, &q, ret)) {
            fail(cpu->number, c, "step %ld, %s: gpa 0x%lx, 0x%lx pages to %s: "
                 "returned %ld", step, q.shape, q.gpa, q.pages,
                 state_names[q.state], ret);
            return;
        }
        converted += q.answer == CONVERTED && !ret;
        refused += ret != 0;
    }
    ok_saying(cpu->number, c, "%ld requests converted, %ld refused",
              converted, refused);
}
