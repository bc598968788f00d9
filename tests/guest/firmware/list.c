/*
 * The list of commands: the parser
 *
 * One command a line; "#" begins a comment.  Numbers are decimal or 0x... hex.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include "firmware.h"

#define MAX_COMMANDS 1024
#define TIMEOUT 1000000        /* minutes: the test ends it before */

/* Ends within the text, so it is no C string. */
typedef struct Word {
    const char *start;
    int length;
} Word;

/* The rest of a line */
typedef struct Line {
    const char *at, *end;
    int number;
} Line;

static Command list[MAX_COMMANDS + 1];
const Command *const commands = list;
const char *const state_names[] = { "shared", "private", "none", NULL };

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static bool is(Word word, const char *s)
{
    int i;

    for (i = 0; i < word.length; i++) {
        if (s[i] != word.start[i]) {
            return false;
        }
    }
    return !s[i];
}

static Word next_word(Line *line)
{
    Word word;

    while (line->at < line->end && is_space(*line->at)) {
        line->at++;
    }
    word.start = line->at;
    while (line->at < line->end && !is_space(*line->at)) {
        line->at++;
    }
    word.length = line->at - word.start;
    return word;
}

/* Returns false, for callers to pass on. */
static bool mistake(const Line *line, const char *what, Word word)
{
    if (word.length) {
        fail(0, NULL, "line %d: %s: %.*s", line->number, what, word.length,
             word.start);
    } else {
        fail(0, NULL, "line %d: there should be more words", line->number);
    }
    return false;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 'a' - 'A';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;
}

static bool is_number(Word word, uint64_t *n)
{
    int base = 10, i = 0;

    if (word.length > 2 && word.start[0] == '0' && word.start[1] == 'x') {
        base = 16;
        i = 2;
    }
    if (i == word.length) {
        return false;
    }
    for (*n = 0; i < word.length; i++) {
        int d = digit(word.start[i]);

        if (d >= base || __builtin_mul_overflow(*n, base, n) ||
            __builtin_add_overflow(*n, d, n)) {
            return false;
        }
    }
    return true;
}

static bool next_number(Line *line, uint64_t *n)
{
    Word word = next_word(line);

    return is_number(word, n) || mistake(line, "not a number", word);
}

/* *n: which of @names it is */
static bool next_choice(Line *line, const char *const *names, int *n)
{
    Word word = next_word(line);

    for (*n = 0; names[*n]; ++*n) {
        if (is(word, names[*n])) {
            return true;
        }
    }
    return mistake(line, "no such choice", word);
}

static bool next_size(Line *line, uint64_t max, uint64_t *n)
{
    Word word = next_word(line);

    return (is_number(word, n) && *n && *n <= max && !(*n & (*n - 1))) ||
           mistake(line, "not a size", word);
}

static bool next_cpu(Line *line, uint32_t *mask)
{
    Word word = next_word(line);
    uint64_t n;

    if (is(word, "all")) {
        *mask = ~0u;
    } else if (is_number(word, &n) && n < (uint64_t)cpus) {
        *mask = 1u << n;
    } else {
        return mistake(line, "no such vCPU", word);
    }
    return true;
}

/* A gpa and a number of pages from @first on, that the firmware can access. */
static bool next_range(Line *line, uint64_t first, uint64_t *arg)
{
    uint64_t end = (uint64_t)mapped_gib << 30;
    Line before = *line;
    Word word = next_word(&before);

    if (!next_number(line, &arg[0]) || !next_number(line, &arg[1])) {
        return false;
    }
    if (arg[0] % PAGE) {
        return mistake(line, "not the gpa of a page", word);
    }
    if (arg[0] < first || arg[0] >= end || !arg[1] ||
        arg[1] > (end - arg[0]) / PAGE) {
        return mistake(line, "no such range for this command", word);
    }
    return true;
}

/* Nothing, or "expect" and a value. */
static bool next_expectation(Line *line, Command *c)
{
    static const struct {
        const char *name;
        int number;
    } errors[] = { { "EAGAIN", 11 }, { "EINVAL", 22 }, { "ENOSYS", 1000 } };
    Word word = next_word(line);
    unsigned int i;

    if (!word.length) {
        return true;
    }
    if (!is(word, "expect")) {
        return mistake(line, "too many words", word);
    }
    word = next_word(line);
    if (is(word, "any")) {
        c->expect = EXPECT_ANY;
        return true;
    }
    for (i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        if (is(word, errors[i].name)) {
            c->expect = EXPECT_ERRNO;
            c->expected = errors[i].number;
            return true;
        }
    }
    c->expect = EXPECT_VALUE;
    return is_number(word, &c->expected) ||
           mistake(line, "nothing to expect", word);
}

/* Nothing, or "no-convert". */
static bool next_limit(Line *line, bool *convert)
{
    Word word = next_word(line);

    *convert = !word.length;
    return *convert || is(word, "no-convert") ||
           mistake(line, "too many words", word);
}

/* @kind: as Verb.words has it; **arg: where its numbers go */
static bool next_kind(Line *line, char kind, Command *c, uint64_t **arg)
{
    static const char *const access[] = { "shared", "private", NULL };
    static const char *const methods[] = { "auto", "port", "vmmcall", NULL };
    static const char *const off_on[] = { "off", "on", NULL };
    static const char *const out_in[] = { "out", "in", NULL };
    static const char *const targets[] = { "buffer", "rings", NULL };

    switch (kind) {
    case 'n':
        return next_number(line, (*arg)++);
    case 'p':
        return next_size(line, 4, (*arg)++);
    case 'm':
        return next_size(line, 8, (*arg)++);
    case 'r':
        *arg += 2;
        return next_range(line, 0, *arg - 2);
    case 'w':
        *arg += 2;
        return next_range(line, OWN_END, *arg - 2);
    case 's':
        return next_choice(line, access, &c->state);
    case 'S':
        return next_choice(line, state_names, &c->state);
    case 'H':
        return next_choice(line, methods, &c->method);
    case 'P':
        return next_choice(line, off_on, &c->preserve);
    case 'C':
        return next_cpu(line, &c->cpus);
    case 't':
        return next_number(line, &c->timeout);
    case 'D':
        return next_choice(line, device_names, &c->device);
    case 'd':
        return next_choice(line, out_in, &c->in);
    case 'R':
        return next_choice(line, targets, &c->rings);
    case 'e':
        return next_expectation(line, c);
    default:                    /* 'l' */
        return next_limit(line, &c->convert);
    }
}

static const Verb *find_verb(Word word)
{
    const Verb *verb;

    for (verb = verbs; verb->name; verb++) {
        if (is(word, verb->name)) {
            return verb;
        }
    }
    return NULL;
}

static bool parse_command(Line *line, Word word, Command *c)
{
    uint64_t *arg = c->arg;
    const char *kind;

    c->line = line->number;
    c->text = word.start;
    c->length = line->end - word.start;
    while (is_space(c->text[c->length - 1])) {
        c->length--;
    }
    c->verb = find_verb(word);
    if (!c->verb) {
        return mistake(line, "no such command", word);
    }
    for (kind = c->verb->words; *kind; kind++) {
        if (!next_kind(line, *kind, c, &arg)) {
            return false;
        }
    }
    word = next_word(line);
    return !word.length || mistake(line, "too many words", word);
}

/* Connect the ends of a loop.  @around: the beginnings of those around @c */
static bool parse_loop(Line *line, Command *c, Command **around, int *depth)
{
    if (c->verb->reach == LOOP_BEGIN) {
        if (*depth == LOOP_DEPTH) {
            fail(0, NULL, "line %d: too many loops in each other",
                 line->number);
            return false;
        }
        c->depth = *depth;
        around[(*depth)++] = c;
    } else if (c->verb->reach == LOOP_END) {
        if (!*depth) {
            fail(0, NULL, "line %d: no loop to end", line->number);
            return false;
        }
        c->depth = --*depth;
        c->other_end = around[*depth];
        around[*depth]->other_end = c;
    }
    return true;
}

static Line cut_line(const char **text, const char *end, int number)
{
    Line line = { *text, *text, number };

    while (*text < end && **text != '\n') {
        ++*text;
    }
    while (line.end < *text && *line.end != '#') {
        line.end++;
    }
    if (*text < end) {
        ++*text;
    }
    return line;
}

bool parse_list(const char *text, uint32_t size)
{
    const char *end = text + size;
    Command *around[LOOP_DEPTH], *c = list;
    int number, depth = 0;

    c->cpus = 1;
    c->timeout = TIMEOUT;
    for (number = 1; text < end; number++) {
        Line line = cut_line(&text, end, number);
        Word word = next_word(&line);

        if (!word.length) {
            continue;
        }
        if (c == list + MAX_COMMANDS) {
            return mistake(&line, "too many commands", word);
        }
        if (!parse_command(&line, word, c) ||
            !parse_loop(&line, c, around, &depth)) {
            return false;
        }
        if (c->verb->run) {
            c[1].cpus = c->cpus;
            c[1].method = c->method;
            c[1].preserve = c->preserve;
            c[1].timeout = c->timeout;
            c++;
        }
    }
    if (depth) {
        fail(0, NULL, "line %d: this loop has no end",
             around[depth - 1]->line);
        return false;
    }
    c->verb = NULL;
    return true;
}
