/*
 * DMA: the command "dma", which has devices transfer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include "dma.h"
#include "io.h"

#define MAX_DATA_PAGES  64
#define STRIDE          512

static const Device *const devices[] = {
    &virtio_blk, &virtio_net, &nvme, &ahci, &e1000e, &fw_cfg
};
const char *const device_names[] = {
    "virtio-blk", "virtio-net", "nvme", "ahci", "e1000e", "fw_cfg", NULL
};

/* One command runs at a time, and uses these and the drivers' variables. */
static bool locked;
static uint64_t timeout;                /* cycles */
static uint8_t own_rings[RING_PAGES * PAGE] __attribute__((aligned(PAGE)));

static uint64_t cycles(void)
{
    uint32_t low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

bool wait_for(uint64_t gpa, int size, uint64_t mask, uint64_t value)
{
    uint64_t start = cycles();

    while ((load(gpa, size) & mask) != value) {
        if (cycles() - start > timeout) {
            return false;
        }
        relax();
    }
    return true;
}

uint32_t make_request(uint64_t gpa)
{
    static const uint8_t frame[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 8, 6,
        0, 1, 8, 0, 6, 4, 0, 1,
        0x52, 0x54, 0, 0, 0, 1, 10, 0, 2, 15,
        0, 0, 0, 0, 0, 0, 10, 0, 2, 2
    };
    uint32_t i;

    for (i = 0; i < sizeof(frame); i++) {
        store(gpa + i, 1, frame[i]);
    }
    return sizeof(frame);
}

/* Counts outcomes in *n. */
static void transfer(const Device *device, uint64_t base, uint64_t rings,
                     const Command *c, uint64_t *n)
{
    uint64_t skip = c->rings ? RING_PAGES : 0, i;
    bool started = false;
    Outcome outcome;

    for (i = 0; i < c->arg[2] && !run_is_over(); i++) {
        started = started || (device->reset(base) && device->start(rings));
        outcome = started ? device->transfer(c->arg[0] + skip * PAGE,
                                             c->arg[1] - skip, c->in)
                          : NOT_STARTED;
        started = outcome == DONE;
        n[outcome]++;
    }
    device->reset(base);
}

void run_dma(Cpu *cpu, const Command *c)
{
    const Device *device = devices[c->device];
    uint64_t n[NOT_STARTED + 1] = { 0 }, base = 0;

    if (c->arg[1] > MAX_DATA_PAGES ||
        (c->rings && c->arg[1] <= RING_PAGES)) {
        fail(cpu->number, c, "at most %d pages, and %d of them are the rings'",
             MAX_DATA_PAGES, RING_PAGES);
        return;
    }
    while (__atomic_exchange_n(&locked, true, __ATOMIC_ACQUIRE)) {
        relax();
    }
    timeout = c->timeout * 1000000;
    if (model_present) {
        /* This fails where no guest memory is private, which is fine. */
        convert_pages(BY_PORT, (uint64_t)own_rings, RING_PAGES, SHARED);
    }
    if (device->pci_id) {
        base = pci_enable(device->pci_id, device->bar);
    }
    if (base || !device->pci_id) {
        transfer(device, base, c->rings ? c->arg[0] : (uint64_t)own_rings, c,
                 n);
    }
    __atomic_store_n(&locked, false, __ATOMIC_RELEASE);

    if (device->pci_id && !base) {
        fail(cpu->number, c, "there is no such device");
    } else {
        (c->expect == EXPECT_VALUE && n[DONE] != c->expected ? fail
         : ok_saying)(cpu->number, c, "%ld done, %ld failed, %ld lost, "
                      "%ld not started", n[DONE], n[FAILED], n[LOST],
                      n[NOT_STARTED]);
    }
}

void run_alternate(Cpu *cpu, const Command *c)
{
    uint64_t converted = 0, busy = 0, random = scramble(c->arg[0]);
    int64_t ret;

    while (!somebody_waits() && !run_is_over()) {
        uint64_t gpa, pages;
        State state;

        random = scramble(random);
        gpa = c->arg[1] + random % c->arg[2] * PAGE;
        pages = 1 + (random >> 32) % (c->arg[2] - random % c->arg[2]);
        state = random >> 63 ? PRIVATE : SHARED;
        ret = convert_pages(c->method, gpa, pages, state);
        if (ret && ret != EAGAIN && ret != -EAGAIN) {
            fail(cpu->number, c, "returned %ld", ret);
            return;
        }
        if (!ret && state == PRIVATE) {
            fill_pages(gpa, pages, c->arg[0], STRIDE);
        }
        converted += !ret;
        busy += !!ret;
    }
    ok_saying(cpu->number, c, "%ld converted, %ld busy", converted, busy);
}
