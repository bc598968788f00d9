/*
 * virtio-blk: a request a transfer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define TYPE_IN         0
#define TYPE_OUT        1
#define HEADER_SIZE     16

/* After the queue's page. */
static uint64_t header;

static bool start(uint64_t rings)
{
    header = rings + PAGE;
    return virtio_start(1, rings);
}

static Outcome transfer(uint64_t gpa, uint64_t pages, bool in)
{
    uint64_t status = header + HEADER_SIZE;

    store(header, 8, in ? TYPE_IN : TYPE_OUT);
    store(header + 8, 8, in ? IN_SECTOR : OUT_SECTOR);
    store(status, 1, 0xff);
    virtio_describe(0, 0, header, HEADER_SIZE, VIRTIO_NEXT);
    virtio_describe(0, 1, gpa, pages * PAGE,
                    VIRTIO_NEXT | (in ? VIRTIO_WRITE : 0));
    virtio_describe(0, 2, status, 1, VIRTIO_WRITE);
    virtio_submit(0);
    if (!virtio_wait(0)) {
        return LOST;
    }
    return load(status, 1) ? FAILED : DONE;
}

const Device virtio_blk = {
    0x10421af4, VIRTIO_BAR, virtio_reset, start, transfer
};
