/*
 * Services that the firmware asks for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SERVICES_H
#define SERVICES_H

/*
 * The test model of KVM's side of guest_memfd handles this port, not QEMU.
 * Reading a byte gives MODEL_PRESENT.  Writing AL asks for a service,
 * with its number in RAX, and the answer comes in RAX.  Registers are those of
 * a hypercall, but for the third argument: DX has the port, so it is in RSI.
 */
#define MODEL_PORT      0x5a0
#define MODEL_PRESENT   0x53
/*
 * The hypercall, by its number.  RBX: gpa, RCX: pages, RSI: attributes.  KVM
 * answers with negative numbers where it answers by itself.
 */
#define MAP_GPA_RANGE   12
#define MAP_PRIVATE     0x10
#define EAGAIN          11
#define EINVAL          22
/* RBX: gpa, RCX: pages, RSI: 1 if this vCPU takes them to be private, or 0 */
#define MODEL_ACCESS    1
/* RBX: gpa; the answer is one of enum State */
#define MODEL_STATE     2

/*
 * Reading a byte gives START_PRIVATE where all RAM is private at first; no
 * CPUID bit shows that.
 */
#define START_PORT      0x5a8
#define START_PRIVATE   0x70

#endif
