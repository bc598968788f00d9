/*
 * virtio 1 over PCI, with split virtqueues
 *
 * Confidential guests have no older interface: QEMU offers them
 * VIRTIO_F_ACCESS_PLATFORM, which needs VIRTIO_F_VERSION_1.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

/* Where QEMU has the common configuration in the BAR. */
#define FEATURES_SELECT         0x00
#define FEATURES                0x04
#define DRIVER_FEATURES_SELECT  0x08
#define DRIVER_FEATURES         0x0c
#define STATUS                  0x14
#define QUEUE_SELECT            0x16
#define QUEUE_SIZE              0x18
#define QUEUE_ENABLE            0x1c
#define QUEUE_DESCRIPTORS       0x20
#define QUEUE_AVAILABLE         0x28
#define QUEUE_USED              0x30
/* And a doorbell a queue. */
#define NOTIFY                  0x3000
#define NOTIFY_SHIFT            2

#define ACKNOWLEDGE_DRIVER      3
#define DRIVER_OK               4
#define FEATURES_OK             8
/* Of the features from 32 on: VERSION_1 and ACCESS_PLATFORM */
#define HIGH_FEATURES           3

/* A virtqueue: its size, and offsets of its parts in its page */
#define SIZE                    8
#define AVAILABLE               0x200
#define USED                    0x400
#define INDEX                   2       /* of both */
#define ENTRIES                 4       /* of the former */

static uint64_t registers;
static uint64_t queues_gpa;
static uint16_t submitted[2];

bool virtio_reset(uint64_t base)
{
    registers = base;
    store(registers + STATUS, 1, 0);
    return wait_for(registers + STATUS, 1, 0xff, 0);
}

static void set_queue_gpa(int reg, uint64_t gpa)
{
    store(registers + reg, 4, gpa);
    store(registers + reg + 4, 4, gpa >> 32);
}

static void start_queue(int queue)
{
    uint64_t gpa = queues_gpa + queue * PAGE;

    store(gpa + AVAILABLE, 4, 0);
    store(gpa + USED, 4, 0);
    submitted[queue] = 0;
    store(registers + QUEUE_SELECT, 2, queue);
    store(registers + QUEUE_SIZE, 2, SIZE);
    set_queue_gpa(QUEUE_DESCRIPTORS, gpa);
    set_queue_gpa(QUEUE_AVAILABLE, gpa + AVAILABLE);
    set_queue_gpa(QUEUE_USED, gpa + USED);
    store(registers + QUEUE_ENABLE, 2, 1);
}

bool virtio_start(int queues, uint64_t rings)
{
    uint8_t status = ACKNOWLEDGE_DRIVER;
    int i;

    store(registers + STATUS, 1, status);
    store(registers + FEATURES_SELECT, 4, 1);
    store(registers + DRIVER_FEATURES_SELECT, 4, 1);
    store(registers + DRIVER_FEATURES, 4,
          load(registers + FEATURES, 4) & HIGH_FEATURES);
    status |= FEATURES_OK;
    store(registers + STATUS, 1, status);
    queues_gpa = rings;
    for (i = 0; i < queues; i++) {
        start_queue(i);
    }
    status |= DRIVER_OK;
    store(registers + STATUS, 1, status);
    return load(registers + STATUS, 1) == status;
}

void virtio_describe(int queue, int descriptor, uint64_t gpa, uint32_t size,
                     int flags)
{
    uint64_t at = queues_gpa + queue * PAGE + descriptor * 16;

    store(at, 8, gpa);
    store(at + 8, 4, size);
    store(at + 12, 2, flags);
    store(at + 14, 2, descriptor + 1);
}

void virtio_submit(int queue)
{
    uint64_t available = queues_gpa + queue * PAGE + AVAILABLE;

    store(available + ENTRIES + submitted[queue] % SIZE * 2, 2, 0);
    store(available + INDEX, 2, ++submitted[queue]);
    store(registers + NOTIFY + (queue << NOTIFY_SHIFT), 2, queue);
}

bool virtio_wait(int queue)
{
    return wait_for(queues_gpa + queue * PAGE + USED + INDEX, 2, 0xffff,
                    submitted[queue]);
}
