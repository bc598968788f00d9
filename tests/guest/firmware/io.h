/*
 * Instructions that C has no words for, and accesses of a chosen size
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef IO_H
#define IO_H

#include <stdint.h>

static inline void relax(void)
{
    asm volatile("pause" : : : "memory");
}

/* @size: bytes, 1, 2 or 4 */
static inline void port_out(uint16_t port, int size, uint32_t value)
{
    if (size == 1) {
        asm volatile("outb %b0, %1" : : "a"(value), "Nd"(port));
    } else if (size == 2) {
        asm volatile("outw %w0, %1" : : "a"(value), "Nd"(port));
    } else {
        asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
    }
}

static inline uint32_t port_in(uint16_t port, int size)
{
    uint32_t value = 0;

    if (size == 1) {
        asm volatile("inb %1, %b0" : "+a"(value) : "Nd"(port));
    } else if (size == 2) {
        asm volatile("inw %1, %w0" : "+a"(value) : "Nd"(port));
    } else {
        asm volatile("inl %1, %0" : "+a"(value) : "Nd"(port));
    }
    return value;
}

/*
 * One access to RAM or MMIO, and what a device sees is in that order.  @size:
 * bytes, 1, 2, 4 or 8
 */
static inline void store(uint64_t gpa, int size, uint64_t value)
{
    if (size == 1) {
        __atomic_store_n((uint8_t *)gpa, value, __ATOMIC_RELEASE);
    } else if (size == 2) {
        __atomic_store_n((uint16_t *)gpa, value, __ATOMIC_RELEASE);
    } else if (size == 4) {
        __atomic_store_n((uint32_t *)gpa, value, __ATOMIC_RELEASE);
    } else {
        __atomic_store_n((uint64_t *)gpa, value, __ATOMIC_RELEASE);
    }
}

static inline uint64_t load(uint64_t gpa, int size)
{
    if (size == 1) {
        return __atomic_load_n((uint8_t *)gpa, __ATOMIC_ACQUIRE);
    } else if (size == 2) {
        return __atomic_load_n((uint16_t *)gpa, __ATOMIC_ACQUIRE);
    } else if (size == 4) {
        return __atomic_load_n((uint32_t *)gpa, __ATOMIC_ACQUIRE);
    }
    return __atomic_load_n((uint64_t *)gpa, __ATOMIC_ACQUIRE);
}

#endif
