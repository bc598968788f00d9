/*
 * Instructions that C has no words for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef IO_H
#define IO_H

#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(uint16_t port, uint16_t value)
{
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;

    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;

    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;

    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void relax(void)
{
    asm volatile("pause" : : : "memory");
}

/* One plain access to guest memory, be it RAM or MMIO. */
static inline uint8_t load8(uint64_t gpa)
{
    return __atomic_load_n((uint8_t *)gpa, __ATOMIC_RELAXED);
}

static inline void store8(uint64_t gpa, uint8_t value)
{
    __atomic_store_n((uint8_t *)gpa, value, __ATOMIC_RELAXED);
}

static inline uint16_t load16(uint64_t gpa)
{
    return __atomic_load_n((uint16_t *)gpa, __ATOMIC_RELAXED);
}

static inline void store16(uint64_t gpa, uint16_t value)
{
    __atomic_store_n((uint16_t *)gpa, value, __ATOMIC_RELAXED);
}

static inline uint32_t load32(uint64_t gpa)
{
    return __atomic_load_n((uint32_t *)gpa, __ATOMIC_RELAXED);
}

static inline void store32(uint64_t gpa, uint32_t value)
{
    __atomic_store_n((uint32_t *)gpa, value, __ATOMIC_RELAXED);
}

static inline uint64_t load64(uint64_t gpa)
{
    return __atomic_load_n((uint64_t *)gpa, __ATOMIC_RELAXED);
}

static inline void store64(uint64_t gpa, uint64_t value)
{
    __atomic_store_n((uint64_t *)gpa, value, __ATOMIC_RELAXED);
}

#endif
