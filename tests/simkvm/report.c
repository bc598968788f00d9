/*
 * simkvm: the log, the report, and the end of a failed run
 *
 * The log is one JSON object a line: {"n": 17, "call": "KVM_CREATE_VM",
 * "ret": 5, ...}, ret being what the system call answers, or -errno.  The
 * report is one JSON object, written when the emulator ends.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdio.h>
#include <stdlib.h>
#include "simkvm.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *log_file;
static uint64_t log_lines;
static GHashTable *calls;               /* name -> how often */
static uint64_t counts[SIM_COUNTS];
static const char *const count_names[SIM_COUNTS] = {
    [SIM_TO_PRIVATE] = "pages-to-private",
    [SIM_TO_SHARED] = "pages-to-shared",
    [SIM_CONVERSIONS] = "conversions",
    [SIM_POPULATED] = "pages-populated",
    [SIM_HOST_TOUCHES] = "host-touches",
    [SIM_FAULTS_INJECTED] = "faults-injected",
    [SIM_PINS_MET] = "pins-met",
    [SIM_EXITS] = "exits",
    [SIM_VMS] = "vms",
    [SIM_VMS_ALIVE] = "vms-alive",
    [SIM_VCPUS_ALIVE] = "vcpus-alive",
    [SIM_GMEMS_ALIVE] = "guest-memfds-alive",
};
static uint64_t peak_gmem, peak_other, peak_total;
/* Of the VMs that were launched, in their order. */
typedef struct Launch {
    uint64_t vm;
    char *json;
} Launch;

static GArray *launches;                /* Launch */
static char *violation;

uint64_t sim_count(SimCount what, uint64_t n)
{
    return __atomic_add_fetch(&counts[what], n, __ATOMIC_RELAXED);
}

uint64_t sim_counted(SimCount what)
{
    return __atomic_load_n(&counts[what], __ATOMIC_RELAXED);
}

/* A JSON string. */
static char *quoted(const char *s)
{
    GString *out = g_string_new("\"");

    for (; *s; s++) {
        if (*s == '"' || *s == '\\') {
            g_string_append_c(out, '\\');
            g_string_append_c(out, *s);
        } else if ((unsigned char)*s < ' ') {
            g_string_append_printf(out, "\\u%04x", *s);
        } else {
            g_string_append_c(out, *s);
        }
    }
    g_string_append_c(out, '"');
    return g_string_free(out, FALSE);
}

void sim_log(const char *call, int64_t ret, const char *format, ...)
{
    uint64_t *n;
    va_list args;

    pthread_mutex_lock(&lock);
    if (!calls) {
        calls = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, g_free);
    }
    n = g_hash_table_lookup(calls, call);
    if (!n) {
        n = g_new0(uint64_t, 1);
        g_hash_table_insert(calls, (char *)call, n);
    }
    (*n)++;

    if (sim_config.log && !log_file) {
        log_file = fopen(sim_config.log, "w");
        if (!log_file) {
            fprintf(stderr, "simkvm: cannot write %s: %s\n", sim_config.log,
                    strerror(errno));
            _exit(2);
        }
        /* Line by line, so that a crash loses none. */
        setvbuf(log_file, NULL, _IOLBF, 0);
    }
    if (log_file) {
        fprintf(log_file, "{\"n\": %" PRIu64 ", \"call\": \"%s\", \"ret\": %"
                PRId64, log_lines++, call, ret);
        if (format) {
            fputs(", ", log_file);
            va_start(args, format);
            vfprintf(log_file, format, args);
            va_end(args);
        }
        fputs("}\n", log_file);
    }
    pthread_mutex_unlock(&lock);
}

void sim_report_memory(uint64_t gmem, uint64_t other)
{
    pthread_mutex_lock(&lock);
    peak_gmem = MAX(peak_gmem, gmem);
    peak_other = MAX(peak_other, other);
    peak_total = MAX(peak_total, gmem + other);
    pthread_mutex_unlock(&lock);
}

void sim_report_launch(uint64_t vm, const char *json)
{
    Launch new = { vm, g_strdup(json) };
    guint i;

    pthread_mutex_lock(&lock);
    if (!launches) {
        launches = g_array_new(FALSE, FALSE, sizeof(Launch));
    }
    for (i = 0; i < launches->len; i++) {
        Launch *launch = &g_array_index(launches, Launch, i);

        if (launch->vm == vm) {
            g_free(launch->json);
            g_array_remove_index(launches, i);
            break;
        }
    }
    g_array_insert_val(launches, i, new);
    pthread_mutex_unlock(&lock);
}

/* The launch of the last VM, then those of all VMs */
static void write_launches(FILE *f)
{
    guint i, n = launches ? launches->len : 0;

    fprintf(f, " \"launch\": %s,\n \"launches\": [",
            n ? g_array_index(launches, Launch, n - 1).json : "null");
    for (i = 0; i < n; i++) {
        fprintf(f, "%s%s", i ? ",\n  " : "",
                g_array_index(launches, Launch, i).json);
    }
    fputs("],\n", f);
}

void sim_report_write(void)
{
    GHashTableIter iter;
    gpointer name, n;
    FILE *f;
    int i;

    if (!sim_config.report) {
        return;
    }
    f = fopen(sim_config.report, "w");
    if (!f) {
        fprintf(stderr, "simkvm: cannot write %s: %s\n", sim_config.report,
                strerror(errno));
        return;
    }
    fprintf(f, "{\"generation\": \"g%d\",\n", sim_config.generation);
    for (i = 0; i < SIM_COUNTS; i++) {
        fprintf(f, " \"%s\": %" PRIu64 ",\n", count_names[i], counts[i]);
    }
    fprintf(f, " \"peak\": {\"guest-memfd\": %" PRIu64 ", \"other\": %" PRIu64
            ", \"total\": %" PRIu64 "},\n", peak_gmem, peak_other, peak_total);
    write_launches(f);
    fprintf(f, " \"violation\": %s,\n", violation ? violation : "null");
    fputs(" \"calls\": {", f);
    if (calls) {
        const char *comma = "";

        g_hash_table_iter_init(&iter, calls);
        while (g_hash_table_iter_next(&iter, &name, &n)) {
            fprintf(f, "%s\"%s\": %" PRIu64, comma, (char *)name,
                    *(uint64_t *)n);
            comma = ", ";
        }
    }
    fputs("}}\n", f);
    fclose(f);
}

static void __attribute__((format(printf, 2, 0), noreturn))
end(int status, const char *format, va_list args)
{
    char *text = g_strdup_vprintf(format, args);

    fprintf(stderr, "simkvm: %s\n", text);
    violation = quoted(text);
    sim_report_write();
    if (status) {
        /* No exit handlers: the emulator is in the middle of something. */
        _exit(status);
    }
    abort();
}

void sim_violation(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    end(0, format, args);
}

void sim_unmodelled(const char *format, ...)
{
    va_list args;
    char *text;

    va_start(args, format);
    text = g_strdup_printf("not modelled: %s", format);
    end(86, text, args);
}
