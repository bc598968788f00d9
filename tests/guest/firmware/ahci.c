/*
 * AHCI: the disk at port 0, by commands in slot 0
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define CONTROL                 0x04
#define RESET                   1
#define AHCI_ENABLE             0x80000000

/* Of the port */
#define COMMAND_LIST            0x100
#define RECEIVED_FIS            0x108
#define INTERRUPT_STATUS        0x110
#define COMMAND                 0x118
#define TASK_FILE               0x120
#define ERRORS                  0x130
#define ISSUE                   0x138

#define RECEIVE                 0x10
#define RECEIVE_START           0x11
#define RUNNING                 0xc000  /* both of them */
#define BUSY_REQUEST            0x88
#define ERROR                   1
/* Of tasks, of the host's bus, of the interface */
#define ERROR_INTERRUPTS        0x78000000

#define FIS_TO_DEVICE           0x8027
#define READ_DMA_EXT            0x25
#define WRITE_DMA_EXT           0x35
#define FIS_DWORDS              5
#define LBA                     0x40000000
#define WRITES                  0x40
#define PAGE_TABLE              0x80    /* in the command table */

static uint64_t registers, list, table;

static bool reset(uint64_t base)
{
    registers = base;
    /* QEMU unmaps the list and the FIS when they stop. */
    store(registers + COMMAND, 4, 0);
    store(registers + CONTROL, 4, AHCI_ENABLE | RESET);
    return wait_for(registers + CONTROL, 4, RESET, 0);
}

static bool start(uint64_t rings)
{
    list = rings;
    table = rings + 2 * PAGE;
    store(registers + CONTROL, 4, AHCI_ENABLE);
    store(registers + COMMAND_LIST, 4, list);
    store(registers + COMMAND_LIST + 4, 4, list >> 32);
    store(registers + RECEIVED_FIS, 4, rings + PAGE);
    store(registers + RECEIVED_FIS + 4, 4, (rings + PAGE) >> 32);
    store(registers + ERRORS, 4, ~0u);
    store(registers + INTERRUPT_STATUS, 4, ~0u);
    store(registers + COMMAND, 4, RECEIVE);
    store(registers + COMMAND, 4, RECEIVE_START);
    return wait_for(registers + COMMAND, 4, RUNNING, RUNNING) &&
           wait_for(registers + TASK_FILE, 4, BUSY_REQUEST, 0);
}

static Outcome transfer(uint64_t gpa, uint64_t pages, bool in)
{
    uint64_t sector = in ? IN_SECTOR : OUT_SECTOR, i;

    store(table, 4, FIS_TO_DEVICE | (in ? READ_DMA_EXT : WRITE_DMA_EXT) << 16);
    store(table + 4, 4, LBA | sector);
    store(table + 8, 4, 0);
    store(table + 12, 4, pages * (PAGE / SECTOR));
    store(table + 16, 4, 0);
    for (i = 0; i < pages; i++) {
        uint64_t entry = table + PAGE_TABLE + i * 16;

        store(entry, 8, gpa + i * PAGE);
        store(entry + 8, 8, (uint64_t)(PAGE - 1) << 32);
    }
    store(list, 4, FIS_DWORDS | (in ? 0 : WRITES) | pages << 16);
    store(list + 4, 4, 0);
    store(list + 8, 8, table);
    store(registers + ISSUE, 4, 1);
    if (!wait_for(registers + ISSUE, 4, 1, 0)) {
        return load(registers + INTERRUPT_STATUS, 4) & ERROR_INTERRUPTS
               ? FAILED : LOST;
    }
    return load(registers + TASK_FILE, 4) & ERROR ? FAILED : DONE;
}

const Device ahci = { 0x29228086, 5, reset, start, transfer };
