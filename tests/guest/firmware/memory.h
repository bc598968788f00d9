/*
 * The firmware's memory map
 *
 * The image stays where it is mapped, just below 4 GiB, and is never written
 * to, so it may be ROM as well as RAM.  Variables are below OWN_END.
 * Memory from there on belongs to the commands.
 *
 *   0x00000000  not used
 *   0x00001000  SEV-SNP: secrets page
 *   0x00002000  SEV-SNP: CPUID page
 *   0x00003000  SEV: hashes of kernel, initrd and command line
 *   0x00004000  TDX: hand-off blocks
 *   0x00005000  where the other vCPUs start: a copy of start16
 *   0x00006000  stacks, one page a vCPU
 *   0x0000e000  page tables: levels 4 and 3
 *   0x00010000  variables, the command list, records of "random"
 *   0x0005f000  page tables: level 2, where there are no pages of 1 GiB
 *   0x0009f000  not used
 *   0x000a0000  end of what the commands must not write to
 *   0xffff0000  the image
 *   0xfffffff0  reset vector
 *
 * KVM's instruction emulator reads code and page tables through the host's
 * mapping.  So where hypercalls or MMIO need emulation, all of this has to be
 * shared; where RAM is private at first, the first vCPU makes it so.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMORY_H
#define MEMORY_H

#define SNP_SECRETS     0x1000
#define SNP_CPUID       0x2000
#define SEV_HASHES      0x3000
#define TDX_HOB         0x4000
#define TRAMPOLINE      0x5000
#define STACKS          0x6000
#define STACK_SHIFT     12
#define LEVEL4          0xe000
#define LEVEL3          0xf000
#define DATA            0x10000
#define DATA_END        0x5f000
#define LEVEL2          0x5f000
#define USED_END        0x9f000
#define OWN_END         0xa0000
#define IMAGE           0xffff0000
#define IMAGE_SIZE      0x10000

#define MAX_CPUS        8

/* GiB that are mapped, at their own addresses. */
#define GIB_BY_LEVEL3   512
#define GIB_BY_LEVEL2   64

#endif
