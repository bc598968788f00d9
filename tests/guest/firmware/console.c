/*
 * The debug console: messages with the number of their vCPU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdarg.h>
#include "firmware.h"
#include "io.h"

#define CONSOLE 0x402

static bool locked;
static uint64_t failures;

static void put_bytes(const char *s, int length)
{
    while (length--) {
        port_out(CONSOLE, 1, *s++);
    }
}

static void put_string(const char *s)
{
    while (*s) {
        port_out(CONSOLE, 1, *s++);
    }
}

static void put_number(uint64_t n, int base)
{
    char digits[20];
    int i = sizeof(digits);

    do {
        digits[--i] = "0123456789abcdef"[n % base];
        n /= base;
    } while (n);
    put_bytes(&digits[i], sizeof(digits) - i);
}

static void put_signed(int64_t n)
{
    if (n < 0) {
        put_string("-");
        n = -n;
    }
    put_number(n, 10);
}

static void put_formatted(const char *format, va_list args)
{
    int length;

    for (; *format; format++) {
        if (*format != '%') {
            port_out(CONSOLE, 1, *format);
            continue;
        }
        switch (*++format) {
        case 's':
            put_string(va_arg(args, const char *));
            break;
        case '.':
            format += 2;
            length = va_arg(args, int);
            put_bytes(va_arg(args, const char *), length);
            break;
        case 'd':
            put_signed(va_arg(args, int));
            break;
        case 'l':
            if (*++format == 'd') {
                put_signed(va_arg(args, int64_t));
            } else {
                put_number(va_arg(args, uint64_t), 16);
            }
            break;
        }
    }
}

static void begin_line(int cpu)
{
    while (__atomic_exchange_n(&locked, true, __ATOMIC_ACQUIRE)) {
        relax();
    }
    put_string("[cpu");
    put_number(cpu, 10);
    put_string("] ");
}

static void end_line(void)
{
    put_string("\n");
    __atomic_store_n(&locked, false, __ATOMIC_RELEASE);
}

void ok(int cpu, const Command *c)
{
    begin_line(cpu);
    put_string("ok ");
    put_bytes(c->text, c->length);
    end_line();
}

void ok_saying(int cpu, const Command *c, const char *format, ...)
{
    va_list args;

    begin_line(cpu);
    put_string("ok ");
    put_bytes(c->text, c->length);
    put_string(": ");
    va_start(args, format);
    put_formatted(format, args);
    va_end(args);
    end_line();
}

void fail(int cpu, const Command *c, const char *format, ...)
{
    va_list args;

    begin_line(cpu);
    failures++;
    put_string("FAIL ");
    if (c) {
        put_string("line ");
        put_number(c->line, 10);
        put_string(": ");
        put_bytes(c->text, c->length);
        put_string(": ");
    }
    va_start(args, format);
    put_formatted(format, args);
    va_end(args);
    end_line();
}

void say_done(int cpu)
{
    begin_line(cpu);
    put_string("done, ");
    put_number(failures, 10);
    put_string(" failed");
    end_line();
}
