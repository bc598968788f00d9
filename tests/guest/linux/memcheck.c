/*
 * memcheck MIB [THREADS]: write memory and check that it stays intact
 *
 * Every word has a value that depends on its place and on the number of the
 * pass.  A pass reads all the words of the previous one, compares, and writes
 * its own.  Threads have every THREADS-th page each, so neighbours in memory
 * are written by different processors.
 *
 * Prints a line for each pass, and one for each word that is not as written:
 *     check: pass=12 errors=0
 *     check: CORRUPT pass=12 page=77 word=5 is=0x0 not=0x1234
 * Goes on until SIGTERM, SIGINT or SIGHUP; exit status 1 if there were errors.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE_WORDS (4096 / sizeof(uint64_t))
#define MAX_REPORTS 10

static uint64_t *memory;
static size_t n_pages;
static unsigned long n_threads = 1;
static pthread_barrier_t barrier;
static atomic_ulong errors;
static volatile sig_atomic_t stop;
static int stopping;            /* by thread 0, between two barriers */

static uint64_t value(uint64_t pass, size_t page, size_t word)
{
    uint64_t x = (pass << 40) ^ (page * PAGE_WORDS + word);

    /* Multiply and fold, so that each bit of the input changes many bits. */
    x *= 0x9e3779b97f4a7c15;
    return x ^ (x >> 29);
}

static void check_page(uint64_t pass, size_t page)
{
    /* volatile: read from memory, not from a register */
    volatile uint64_t *words = memory + page * PAGE_WORDS;
    size_t i;

    for (i = 0; i < PAGE_WORDS; i++) {
        /* Nothing was written before pass 1: fresh memory is zero. */
        uint64_t want = pass > 1 ? value(pass - 1, page, i) : 0;
        uint64_t is = words[i];

        if (is != want && atomic_fetch_add(&errors, 1) < MAX_REPORTS) {
            printf("check: CORRUPT pass=%llu page=%zu word=%zu is=0x%llx "
                   "not=0x%llx\n", (unsigned long long)pass, page, i,
                   (unsigned long long)is, (unsigned long long)want);
        }
        words[i] = value(pass, page, i);
    }
}

static void *run(void *opaque)
{
    size_t self = (size_t)opaque;
    uint64_t pass;
    size_t page;

    for (pass = 1; ; pass++) {
        for (page = self; page < n_pages; page += n_threads) {
            check_page(pass, page);
        }
        pthread_barrier_wait(&barrier);
        if (self == 0) {
            printf("check: pass=%llu errors=%lu\n", (unsigned long long)pass,
                   atomic_load(&errors));
            stopping = stop;
        }
        pthread_barrier_wait(&barrier);
        if (stopping) {
            return NULL;
        }
    }
}

static void on_signal(int number)
{
    stop = 1;
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_signal };
    size_t size;
    unsigned long i;

    if (argc < 2) {
        fprintf(stderr, "usage: memcheck MIB [THREADS]\n");
        return 2;
    }
    if (sscanf(argv[1], "%zu", &size) != 1 || !size ||
        (argc > 2 && sscanf(argv[2], "%lu", &n_threads) != 1) || !n_threads) {
        fprintf(stderr, "memcheck: these are not two positive numbers\n");
        return 2;
    }
    size <<= 20;
    n_pages = size / 4096;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("memcheck: mmap");
        return 2;
    }

    setvbuf(stdout, NULL, _IOLBF, 0);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    pthread_barrier_init(&barrier, NULL, n_threads);
    for (i = 1; i < n_threads; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, run, (void *)i)) {
            fprintf(stderr, "memcheck: cannot create a thread\n");
            return 2;
        }
        pthread_detach(thread);
    }
    run(NULL);
    printf("check: done errors=%lu\n", atomic_load(&errors));
    return atomic_load(&errors) ? 1 : 0;
}
