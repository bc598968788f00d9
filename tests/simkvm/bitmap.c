/*
 * simkvm: a bit per page, for address spaces that are mostly empty
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"

#define CHUNK_SHIFT 18                          /* pages: 1 GiB */
#define CHUNK_PAGES (1ULL << CHUNK_SHIFT)
#define CHUNK_WORDS (CHUNK_PAGES / 64)

void sim_bitmap_init(SimBitmap *b, uint64_t pages)
{
    b->nr_chunks = (pages + CHUNK_PAGES - 1) >> CHUNK_SHIFT;
    /* Not calloc(): pages that are never touched shall not be allocated. */
    b->chunks = mmap(NULL, b->nr_chunks * sizeof(*b->chunks),
                     PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(b->chunks != MAP_FAILED);
}

void sim_bitmap_free(SimBitmap *b)
{
    uint64_t i;

    for (i = 0; i < b->nr_chunks; i++) {
        g_free(b->chunks[i]);
    }
    munmap(b->chunks, b->nr_chunks * sizeof(*b->chunks));
}

bool sim_bitmap_test(const SimBitmap *b, uint64_t page)
{
    uint64_t chunk = page >> CHUNK_SHIFT;
    uint64_t bit = page & (CHUNK_PAGES - 1);

    return chunk < b->nr_chunks && b->chunks[chunk] &&
           b->chunks[chunk][bit / 64] >> (bit % 64) & 1;
}

uint64_t sim_bitmap_fill(SimBitmap *b, uint64_t page, uint64_t pages, bool on)
{
    uint64_t end = page + pages, changed = 0;

    while (page < end) {
        uint64_t chunk = page >> CHUNK_SHIFT;
        uint64_t bit = page & (CHUNK_PAGES - 1);
        uint64_t n = MIN(64 - bit % 64, end - page);
        uint64_t mask = n == 64 ? ~0ULL : ((1ULL << n) - 1) << bit % 64;
        uint64_t *word;

        g_assert(chunk < b->nr_chunks);
        if (!b->chunks[chunk]) {
            if (!on) {
                page = MIN((chunk + 1) << CHUNK_SHIFT, end);
                continue;
            }
            b->chunks[chunk] = g_new0(uint64_t, CHUNK_WORDS);
        }
        word = &b->chunks[chunk][bit / 64];
        changed += __builtin_popcountll((on ? ~*word : *word) & mask);
        *word = on ? *word | mask : *word & ~mask;
        page += n;
    }
    return changed;
}

uint64_t sim_bitmap_run(const SimBitmap *b, uint64_t page, uint64_t end)
{
    bool on = sim_bitmap_test(b, page);

    while (page < end) {
        uint64_t chunk = page >> CHUNK_SHIFT;
        uint64_t bit = page & (CHUNK_PAGES - 1);
        uint64_t word;

        if (chunk >= b->nr_chunks || !b->chunks[chunk]) {
            if (on) {
                return page;
            }
            page = (chunk + 1) << CHUNK_SHIFT;
            continue;
        }
        word = b->chunks[chunk][bit / 64];
        /* 1 where the bit differs from that of @page; bit 0 is @page's. */
        word = (on ? ~word : word) >> bit % 64;
        if (word) {
            page += __builtin_ctzll(word);
            break;
        }
        page += 64 - bit % 64;
    }
    return MIN(page, end);
}

bool sim_bitmap_any(const SimBitmap *b, uint64_t page, uint64_t pages, bool on)
{
    return pages && (sim_bitmap_test(b, page) == on ||
                     sim_bitmap_run(b, page, page + pages) < page + pages);
}
