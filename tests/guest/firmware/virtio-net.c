/*
 * virtio-net: a frame a page
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define RECEIVE         0
#define TRANSMIT        1
#define HEADER_SIZE     12

/* After the queues' pages. */
static uint64_t header, request;

static bool start(uint64_t rings)
{
    header = rings + 2 * PAGE;
    request = rings + 3 * PAGE;
    return virtio_start(2, rings);
}

static bool send(uint64_t gpa, uint32_t size)
{
    store(header, 8, 0);
    store(header + 8, 4, 0);
    virtio_describe(TRANSMIT, 0, header, HEADER_SIZE, VIRTIO_NEXT);
    virtio_describe(TRANSMIT, 1, gpa, size, 0);
    virtio_submit(TRANSMIT);
    return virtio_wait(TRANSMIT);
}

static bool receive(uint64_t gpa)
{
    virtio_describe(RECEIVE, 0, gpa, PAGE, VIRTIO_WRITE);
    virtio_submit(RECEIVE);
    return send(request, make_request(request)) && virtio_wait(RECEIVE);
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

const Device virtio_net = {
    0x10411af4, VIRTIO_BAR, virtio_reset, start, transfer
};
