/*
 * fw_cfg: the emulator's files, by port and by DMA
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define SELECT_PORT     0x510
#define DATA_PORT       0x511
#define DMA_HIGH_PORT   0x514           /* big-endian, as all of the DMA */
#define DMA_LOW_PORT    0x518
#define FILES           0x19            /* numbers in there are big-endian */
#define NAME_SIZE       56

/* Of a DMA request: control, length, address */
#define LENGTH          4
#define ADDRESS         8
#define DMA_ERROR       0x01
#define DMA_READ        0x02
#define DMA_SELECT      0x08
#define DMA_WRITE       0x10

/* The file to read, and the one to write, which is read without the former */
#define IN_NAME         "opt/guest-memfd/data"
#define OUT_NAME        "etc/vmcoreinfo"
#define OUT_SIZE        16

static uint64_t request;
static uint16_t in_key, out_key;

void fw_cfg_select(uint16_t key)
{
    port_out(SELECT_PORT, 2, key);
}

void fw_cfg_read(void *to, uint32_t size)
{
    uint8_t *p = to;

    while (size--) {
        *p++ = port_in(DATA_PORT, 1);
    }
}

static uint32_t read_number(int bytes)
{
    uint32_t n = 0;

    while (bytes--) {
        n = n << 8 | port_in(DATA_PORT, 1);
    }
    return n;
}

uint32_t fw_cfg_find(const char *wanted, uint16_t *key)
{
    char name[NAME_SIZE];
    uint32_t files, size, i;

    fw_cfg_select(FILES);
    for (files = read_number(4); files; files--) {
        size = read_number(4);
        *key = read_number(2);
        read_number(2);
        fw_cfg_read(name, sizeof(name));
        i = 0;
        while (wanted[i] && wanted[i] == name[i]) {
            i++;
        }
        if (wanted[i] == name[i]) {
            return size;
        }
    }
    return 0;
}

static bool reset(uint64_t base __attribute__((unused)))
{
    return true;
}

static bool start(uint64_t rings)
{
    request = rings;
    /* They stay where they are. */
    return out_key || (fw_cfg_find(OUT_NAME, &out_key) &&
                       (fw_cfg_find(IN_NAME, &in_key) ||
                        (in_key = out_key)));
}

static Outcome transfer(uint64_t gpa, uint64_t pages, bool in)
{
    uint32_t control = in ? in_key << 16 | DMA_SELECT | DMA_READ
                          : out_key << 16 | DMA_SELECT | DMA_WRITE;

    store(request, 4, __builtin_bswap32(control));
    store(request + LENGTH, 4, __builtin_bswap32(in ? pages * PAGE : OUT_SIZE));
    store(request + ADDRESS, 8, __builtin_bswap64(gpa));
    port_out(DMA_HIGH_PORT, 4, __builtin_bswap32(request >> 32));
    port_out(DMA_LOW_PORT, 4, __builtin_bswap32(request));
    /* The exit for the write has ended, and the transfer with it. */
    control = __builtin_bswap32(load(request, 4));
    return !control ? DONE : control & DMA_ERROR ? FAILED : LOST;
}

const Device fw_cfg = { 0, 0, reset, start, transfer };
