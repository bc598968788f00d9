/*
 * PCI: devices on bus 0, by configuration mechanism 1
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "dma.h"
#include "io.h"

#define CONFIG_ADDRESS  0xcf8
#define CONFIG_DATA     0xcfc
#define ENABLE          0x80000000
#define ID              0
#define COMMAND         4
#define MEMORY_MASTER   6
#define BAR_0           0x10

/* Nothing else is there on q35 and pc.  1 MiB a function */
#define WINDOW          0xe0000000
#define WINDOW_SHIFT    20

static void set_address(uint32_t function, int reg)
{
    port_out(CONFIG_ADDRESS, 4, ENABLE | function << 8 | reg);
}

static uint32_t read_config(uint32_t function, int reg)
{
    set_address(function, reg);
    return port_in(CONFIG_DATA, 4);
}

static void write_config(uint32_t function, int reg, uint32_t value)
{
    set_address(function, reg);
    port_out(CONFIG_DATA, 4, value);
}

uint64_t pci_enable(uint32_t id, int bar)
{
    uint32_t function, base;

    for (function = 0; function < 256; function++) {
        if (read_config(function, ID) == id) {
            base = WINDOW + (function << WINDOW_SHIFT);
            write_config(function, BAR_0 + bar * 4, base);
            /* The upper half, or a BAR that no driver needs */
            write_config(function, BAR_0 + bar * 4 + 4, 0);
            write_config(function, COMMAND, MEMORY_MASTER);
            return base;
        }
    }
    return 0;
}
