/*
 * Drivers that make devices transfer to and from guest memory
 *
 * All of them poll, and do not trust memory: another vCPU may convert the pages
 * of a transfer, and of the rings, at any time.  So they keep the state of a
 * device in variables.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef DMA_H
#define DMA_H

#include "firmware.h"

/*
 * Pages for control data that a device reads: descriptors, queues, lists of
 * pages, small packets.
 */
#define RING_PAGES      4
/* Where disks are read from and written to, in sectors. */
#define SECTOR          512
#define IN_SECTOR       0
#define OUT_SECTOR      2048
/* Bytes of each page that are sent as a frame. */
#define FRAME_SIZE      1024

typedef enum Outcome {
    DONE,
    FAILED,                     /* reported by the device */
    LOST,                       /* the device did not answer */
    NOT_STARTED,
} Outcome;

/* One transfer at a time, of one device. */
typedef struct Device {
    uint32_t pci_id;            /* device and vendor, or 0 */
    int bar;                    /* where it has its registers */
    /* @base: gpa of the BAR.  Afterwards the device leaves memory alone. */
    bool (*reset)(uint64_t base);
    /* After a reset.  @rings: gpa of RING_PAGES */
    bool (*start)(uint64_t rings);
    /* After it was started.  @in: to memory, else from it */
    Outcome (*transfer)(uint64_t gpa, uint64_t pages, bool in);
} Device;

extern const Device virtio_blk, virtio_net, nvme, ahci, e1000e, fw_cfg;

/* --- dma.c --- */

/*
 * Wait until the bits of @mask in @size bytes at @gpa are @value.  Returns
 * false after the command's timeout.
 */
bool wait_for(uint64_t gpa, int size, uint64_t mask, uint64_t value);

/*
 * Write an ARP request at @gpa.  QEMU's user network answers it with a frame to
 * the sender.  Returns its size in bytes.
 */
uint32_t make_request(uint64_t gpa);

/* --- pci.c --- */

/*
 * The device on bus 0, with that BAR mapped and bus mastering on.  Returns the
 * gpa of the BAR, or 0 where there is no such device.
 */
uint64_t pci_enable(uint32_t id, int bar);

/* --- virtio.c --- */

#define VIRTIO_BAR      4
/* Flags: a chain goes on with the next descriptor; the device writes there. */
#define VIRTIO_NEXT     1
#define VIRTIO_WRITE    2

bool virtio_reset(uint64_t base);
/* @queues: how many; each takes a page of @rings. */
bool virtio_start(int queues, uint64_t rings);
void virtio_describe(int queue, int descriptor, uint64_t gpa, uint32_t size,
                     int flags);
/* Hand the chain over that begins with descriptor 0. */
void virtio_submit(int queue);
/* Has the device returned all chains? */
bool virtio_wait(int queue);

#endif
