/*
 * e1000e: a frame a page
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define CONTROL                 0x0000
#define STATUS                  0x0008
#define RECEIVE_CONTROL         0x0100
#define TRANSMIT_CONTROL        0x0400
/* Of a ring */
#define RECEIVE                 0x2800
#define TRANSMIT                0x3800
#define LENGTH                  0x08
#define HEAD                    0x10
#define TAIL                    0x18

#define SET_LINK_UP             0x40
#define RESET                   0x4000000
#define LINK_UP                 2
/* Any address; broadcasts; buffers of 2 KiB */
#define RECEIVE_ALL             0x801a
#define TRANSMIT_ALL            0x0a

#define ENTRIES                 8
/* End of packet, checksum, report status */
#define SEND                    0x0b000000
#define DONE_STATUS             1       /* bytes 12 of both descriptors */

typedef struct Ring {
    uint64_t gpa, registers;
    uint32_t tail;
} Ring;

static uint64_t registers, request;
static Ring receive_ring, transmit_ring;

static bool reset(uint64_t base)
{
    registers = base;
    store(registers + CONTROL, 4, RESET);
    return wait_for(registers + CONTROL, 4, RESET, 0);
}

static void set_up(Ring *ring, uint32_t at, uint64_t gpa)
{
    *ring = (Ring) { gpa, registers + at, 0 };
    store(ring->registers, 4, gpa);
    store(ring->registers + 4, 4, gpa >> 32);
    store(ring->registers + LENGTH, 4, ENTRIES * 16);
    store(ring->registers + HEAD, 4, 0);
    store(ring->registers + TAIL, 4, 0);
}

static bool start(uint64_t rings)
{
    request = rings + 2 * PAGE;
    set_up(&receive_ring, RECEIVE, rings);
    set_up(&transmit_ring, TRANSMIT, rings + PAGE);
    store(registers + CONTROL, 4, SET_LINK_UP);
    store(registers + RECEIVE_CONTROL, 4, RECEIVE_ALL);
    store(registers + TRANSMIT_CONTROL, 4, TRANSMIT_ALL);
    return wait_for(registers + STATUS, 4, LINK_UP, LINK_UP);
}

/* Returns the gpa of the descriptor. */
static uint64_t submit(Ring *ring, uint64_t gpa, uint32_t command)
{
    uint64_t descriptor = ring->gpa + ring->tail * 16;

    store(descriptor, 8, gpa);
    store(descriptor + 8, 8, command);
    ring->tail = (ring->tail + 1) % ENTRIES;
    store(ring->registers + TAIL, 4, ring->tail);
    return descriptor;
}

static bool is_done(uint64_t descriptor)
{
    return wait_for(descriptor + 12, 1, DONE_STATUS, DONE_STATUS);
}

static bool send(uint64_t gpa, uint32_t size)
{
    return is_done(submit(&transmit_ring, gpa, SEND | size));
}

static bool receive(uint64_t gpa)
{
    uint64_t descriptor = submit(&receive_ring, gpa, 0);

    return send(request, make_request(request)) && is_done(descriptor);
}

static Outcome transfer(uint64_t gpa, uint64_t pages, bool in)
{
    for (; pages; pages--, gpa += PAGE) {
        if (!(in ? receive(gpa) : send(gpa, FRAME_SIZE))) {
            return LOST;
        }
    }
    return DONE;
}

const Device e1000e = { 0x10d38086, 0, reset, start, transfer };
