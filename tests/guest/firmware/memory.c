/*
 * Contents and state of guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "firmware.h"
#include "io.h"

/* Odd, so that no two words of memory get the same contents. */
#define STEP 0x9e3779b97f4a7c15

/* Invertible: no two numbers give the same one. */
uint64_t scramble(uint64_t x)
{
    x = (x + 1) * 0xd6e8feb86659fd93;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    return x ^ x >> 32;
}

static uint64_t pattern(uint64_t gpa, uint64_t seed)
{
    return scramble(seed) + gpa / 8 * STEP;
}

void fill_pages(uint64_t gpa, uint64_t pages, uint64_t seed, uint64_t stride)
{
    uint64_t end = gpa + pages * PAGE, step = stride / 8 * STEP;
    uint64_t value = pattern(gpa, seed);

    for (; gpa < end; gpa += stride, value += step) {
        store(gpa, 8, value);
    }
}

/* From word to word, the value grows by @step. */
static bool words_are(uint64_t gpa, uint64_t pages, uint64_t value,
                      uint64_t step, uint64_t stride, Wrong *wrong)
{
    uint64_t end = gpa + pages * PAGE;

    for (; gpa < end; gpa += stride, value += step) {
        uint64_t found = load(gpa, 8);

        if (found != value) {
            *wrong = (Wrong) { gpa, value, found };
            return false;
        }
    }
    return true;
}

bool pages_are_filled(uint64_t gpa, uint64_t pages, uint64_t seed,
                      uint64_t stride, Wrong *wrong)
{
    return words_are(gpa, pages, pattern(gpa, seed), stride / 8 * STEP,
                     stride, wrong);
}

bool pages_are_zero(uint64_t gpa, uint64_t pages, Wrong *wrong)
{
    return words_are(gpa, pages, 0, 0, EVERY_WORD, wrong);
}

int64_t ask_model(uint64_t service, uint64_t gpa, uint64_t pages,
                  uint64_t argument)
{
    asm volatile("outb %%al, %%dx"
                 : "+a"(service)
                 : "b"(gpa), "c"(pages), "d"(MODEL_PORT), "S"(argument)
                 : "memory");
    return service;
}

int64_t convert_pages(Method method, uint64_t gpa, uint64_t pages,
                      State state)
{
    uint64_t attributes = state == PRIVATE ? MAP_PRIVATE : 0;
    uint64_t ret = MAP_GPA_RANGE;

    if (method == BY_PORT || (method == BY_AUTO && model_present)) {
        return ask_model(MAP_GPA_RANGE, gpa, pages, attributes);
    }
    asm volatile("call *%4"
                 : "+a"(ret)
                 : "b"(gpa), "c"(pages), "d"(attributes),
                   "r"(hypercall - start16 + TRAMPOLINE)
                 : "memory");
    return ret;
}
