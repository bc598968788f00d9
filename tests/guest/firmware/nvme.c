/*
 * NVMe: one pair of queues besides the admin queues; a command per transfer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define CONFIGURATION           0x14
#define STATUS                  0x1c
#define ADMIN_SIZES             0x24
#define ADMIN_SUBMISSION        0x28
#define ADMIN_COMPLETION        0x30
#define DOORBELLS               0x1000

/* Entries of 64 and of 16 bytes */
#define ENABLED                 0x00460001
#define READY                   1

#define ENTRIES                 16
#define CREATE_SUBMISSION       1
#define CREATE_COMPLETION       5
#define WRITE                   1
#define READ                    2

/* In the first page, after the admin submission queue */
#define PAGE_LIST               0x800

typedef struct Queues {
    uint32_t number;
    uint64_t submission, completion;
    uint32_t tail, head;
    uint32_t phase;
} Queues;

static uint64_t registers, page_list;
static Queues admin, io;
static uint16_t command_id;

static bool reset(uint64_t base)
{
    registers = base;
    store(registers + CONFIGURATION, 4, 0);
    return wait_for(registers + STATUS, 4, READY, 0);
}

static void set_up(Queues *q, uint32_t number, uint64_t gpa)
{
    int i;

    *q = (Queues) { number, gpa, gpa + PAGE, .phase = 1 };
    for (i = 0; i < ENTRIES; i++) {
        store(q->completion + i * 16 + 12, 4, 0);
    }
}

/* @page, @pages: as the controller takes them: its two PRPs */
static Outcome submit(Queues *q, uint32_t opcode, uint64_t page,
                      uint64_t pages, uint64_t argument, uint32_t blocks)
{
    uint64_t command = q->submission + q->tail * 64;
    uint64_t completion = q->completion + q->head * 16;
    uint64_t doorbells = registers + DOORBELLS + q->number * 8;

    command_id++;
    store(command, 4, opcode | (uint32_t)command_id << 16);
    store(command + 4, 4, q->number);   /* namespace 1; ignored by others */
    store(command + 8, 8, 0);
    store(command + 16, 8, 0);
    store(command + 24, 8, page);
    store(command + 32, 8, pages);
    store(command + 40, 8, argument);
    store(command + 48, 8, blocks);
    store(command + 56, 8, 0);
    q->tail = (q->tail + 1) % ENTRIES;
    store(doorbells, 4, q->tail);
    if (!wait_for(completion + 12, 4, 0x1ffff,
                  command_id | q->phase << 16)) {
        return LOST;
    }
    q->head = (q->head + 1) % ENTRIES;
    q->phase ^= !q->head;
    store(doorbells + 4, 4, q->head);
    return load(completion + 12, 4) >> 17 ? FAILED : DONE;
}

static bool start(uint64_t rings)
{
    uint64_t sizes = (ENTRIES - 1) << 16, contiguous = 1ull << 32;

    set_up(&admin, 0, rings);
    set_up(&io, 1, rings + 2 * PAGE);
    page_list = rings + PAGE_LIST;
    store(registers + ADMIN_SIZES, 4, sizes | (ENTRIES - 1));
    store(registers + ADMIN_SUBMISSION, 8, admin.submission);
    store(registers + ADMIN_COMPLETION, 8, admin.completion);
    store(registers + CONFIGURATION, 4, ENABLED);
    return wait_for(registers + STATUS, 4, READY, READY) &&
           submit(&admin, CREATE_COMPLETION, io.completion, 0,
                  io.number | sizes | contiguous, 0) == DONE &&
           submit(&admin, CREATE_SUBMISSION, io.submission, 0,
                  io.number | sizes | contiguous | (uint64_t)io.number << 48,
                  0) == DONE;
}

static Outcome transfer(uint64_t gpa, uint64_t pages, bool in)
{
    uint64_t rest = gpa + PAGE, i;

    if (pages > 2) {
        for (i = 1; i < pages; i++) {
            store(page_list + (i - 1) * 8, 8, gpa + i * PAGE);
        }
        rest = page_list;
    }
    return submit(&io, in ? READ : WRITE, gpa, pages > 1 ? rest : 0,
                  in ? IN_SECTOR : OUT_SECTOR, pages * (PAGE / SECTOR) - 1);
}

const Device nvme = { 0x00101b36, 0, reset, start, transfer };
