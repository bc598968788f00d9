/*
 * Bare-metal guest: every processor writes memory and checks what it wrote
 *
 * Started by Multiboot (-kernel).  Its command line is "memcheck START MIB
 * CPUS": each of CPUS processors gets MIB MiB of physical memory, from START
 * MiB on.  It reports on the debug console (port 0xe9), one line for each
 * pass of each processor: "cpu C pass P", and "CORRUPT ..." if a word is not
 * what was last written there.  It never ends.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdint.h>
#include "memcheck.h"

#define TRAMPOLINE 0x8000
#define LAPIC_ICR ((uint32_t *)0xfee00300)
#define ICR_ALL_OTHERS 0x000c0000
#define ICR_INIT 0x00004500
#define ICR_STARTUP 0x00004600
#define PAGE 4096

static uint32_t start_mib, mib, cpus;
static uint32_t console_lock;

static void out8(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void put(const char *s)
{
    while (*s) {
        out8(0xe9, *s++);
    }
}

static void put_number(uint32_t n)
{
    char digits[11];
    int i = sizeof(digits) - 1;

    digits[i] = 0;
    do {
        digits[--i] = '0' + n % 10;
        n /= 10;
    } while (n);
    put(&digits[i]);
}

static void lock_console(void)
{
    while (__sync_lock_test_and_set(&console_lock, 1)) {
        asm volatile("pause");
    }
}

static void unlock_console(void)
{
    __sync_lock_release(&console_lock);
}

static const char *parse(const char *s, uint32_t *n)
{
    while (*s && (*s < '0' || *s > '9')) {
        s++;
    }
    for (*n = 0; *s >= '0' && *s <= '9'; s++) {
        *n = *n * 10 + (*s - '0');
    }
    return s;
}

/* Depends on the address too, so that a page in the wrong place is seen. */
static void send_ipi(uint32_t command)
{
    __atomic_store_n(LAPIC_ICR, command, __ATOMIC_RELEASE);
}

static uint32_t pattern(uint32_t addr, uint32_t pass)
{
    return (addr ^ pass * 0x9e3779b1u) | 1;
}

static void report_corruption(uint32_t cpu, uint32_t pass,
                              const uint32_t *p, uint32_t got)
{
    lock_console();
    put("CORRUPT cpu ");
    put_number(cpu);
    put(" pass ");
    put_number(pass);
    put(" address ");
    put_number((uint32_t)p);
    put(" is ");
    put_number(got);
    put("\n");
    unlock_console();
}

/*
 * One locked exchange a page: reads what the last pass wrote and writes what
 * the next will check, in one access that must be neither lost nor split.
 */
static void check_pass(uint32_t cpu, uint32_t pass)
{
    uint32_t addr = (start_mib + cpu * mib) << 20;
    uint32_t end = addr + (mib << 20);

    for (; addr < end; addr += PAGE) {
        uint32_t *p = (uint32_t *)(addr + (pass & 0xff) * 4);
        uint32_t *last = (uint32_t *)(addr + ((pass - 1) & 0xff) * 4);
        uint32_t got;

        __sync_lock_test_and_set(p, pattern(addr, pass));
        if (pass > 1) {
            got = __sync_lock_test_and_set(last, 0);
            if (got != pattern(addr, pass - 1)) {
                report_corruption(cpu, pass, last, got);
            }
        }
    }
}

void cpu_main(uint32_t cpu)
{
    uint32_t pass;

    if (cpu >= cpus) {
        return;
    }
    for (pass = 1; ; pass++) {
        check_pass(cpu, pass);
        lock_console();
        put("cpu ");
        put_number(cpu);
        put(" pass ");
        put_number(pass);
        put("\n");
        unlock_console();
    }
}

static void delay(uint32_t loops)
{
    while (loops--) {
        /* Port 0x80 takes about a microsecond, or an exit under KVM. */
        out8(0x80, 0);
    }
}

/* @info: as Multiboot passes it in %ebx; word 4 is the command line. */
void boot_main(const uint32_t *info)
{
    const char *s = (const char *)info[4];
    char *to = (char *)TRAMPOLINE;
    const char *from;

    while (*s && *s != ' ') {   /* the name of the file */
        s++;
    }
    s = parse(s, &start_mib);
    s = parse(s, &mib);
    parse(s, &cpus);

    for (from = trampoline; from < trampoline_end; from++) {
        *to++ = *from;
    }
    if (cpus > 1) {
        send_ipi(ICR_ALL_OTHERS | ICR_INIT);
        delay(10000);
        send_ipi(ICR_ALL_OTHERS | ICR_STARTUP | TRAMPOLINE >> 12);
    }
    cpu_main(0);
}
