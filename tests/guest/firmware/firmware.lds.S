/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "memory.h"

#define GUIDS_SIZE 110

SECTIONS
{
    .bss DATA (NOLOAD) : { *(.bss*) *(COMMON) }
    ASSERT(. <= DATA_END, "variables take too much memory")

    .text IMAGE : {
        *(.start)
        *(.text*)
        *(.rodata*)
        *(.metadata)
    }
    .guids IMAGE + IMAGE_SIZE - 32 - GUIDS_SIZE : { *(.guids) }
    ASSERT(SIZEOF(.guids) == GUIDS_SIZE, "GUIDS_SIZE is wrong")
    .reset IMAGE + IMAGE_SIZE - 16 : { *(.reset) }
    sev_metadata_distance = IMAGE + IMAGE_SIZE - sev_metadata;
    tdx_metadata_distance = IMAGE + IMAGE_SIZE - tdx_metadata;

    .data : { *(.data*) }
    ASSERT(SIZEOF(.data) == 0, "the image may be read-only")
    /DISCARD/ : { *(.eh_frame*) *(.note*) *(.comment*) }
}
