/* Samples, and the line they become. */
#include <math.h>
#include <stdlib.h>

#include "daemon/bench_switch.h"
#include "daemon/json_out.h"

void bench_add(struct bench_list *l, double v)
{
    if (l->count == l->cap) {
        l->cap = l->cap * 2 + 64;
        l->v = mem_grow(l->v, l->cap, sizeof(*l->v));
    }
    l->v[l->count++] = v;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(struct bench_list *l, double q)
{
    if (l->count == 0)
        return (double)NAN;
    qsort(l->v, l->count, sizeof(*l->v), by_size);
    size_t at = (size_t)ceil(q * (double)l->count);
    return l->v[at > 0 ? at - 1 : 0];
}

void bench_figures_done(struct bench_figures *f)
{
    struct bench_list *const lists[] = {&f->ttft,  &f->resident, &f->excess,    &f->load,
                                        &f->ratio, &f->rate,     &f->device,    &f->copy,
                                        &f->share, &f->fio,      &f->copy_share};
    for (size_t i = 0; i < BASE_COUNT(lists); i++)
        free(lists[i]->v);
    *f = (struct bench_figures){0};
}

static void put_real(struct buf *out, const char *name, double v)
{
    buf_printf(out, ",\"%s\":", name);
    json_put_real(out, v, 6);
}

static void put_json(struct bench_switch *b, struct buf *out)
{
    struct bench_figures *f = &b->figures;
    double gb = (double)f->bytes * 1e-9;
    buf_puts(out, "{\"bench\":");
    json_put_str(out, b->which);
    buf_puts(out, ",\"from\":");
    json_put_str(out, b->from);
    buf_puts(out, ",\"pattern\":");
    json_put_str(out, b->pattern);
    buf_printf(out, ",\"n\":%zu", BASE_MAX(f->ttft.count, f->load.count));
    put_real(out, "ttft_ms_p50", bench_quantile(&f->ttft, 0.5));
    put_real(out, "ttft_ms_p99", bench_quantile(&f->ttft, 0.99));
    put_real(out, "excess_ms_p50", bench_quantile(&f->excess, 0.5));
    put_real(out, "excess_ms_p99", bench_quantile(&f->excess, 0.99));
    buf_printf(out, ",\"bytes\":%llu", (unsigned long long)f->bytes);
    put_real(out, "gb_per_s", bench_quantile(&f->rate, 0.5) * 1e-9);
    put_real(out, "device_gb_per_s", bench_quantile(&f->device, 0.5) * 1e-9);
    put_real(out, "share_of_device", bench_quantile(&f->share, 0.5));
    put_real(out, "cpu_s_per_gb", gb > 0 ? (double)f->cpu_ns * 1e-9 / gb : (double)NAN);
    buf_printf(out, ",\"loads\":%llu,\"hits\":%llu,\"evictions\":%llu",
               (unsigned long long)f->loads, (unsigned long long)f->hits,
               (unsigned long long)f->evictions);
    put_real(out, "memcpy_gb_per_s", bench_quantile(&f->copy, 0.5) * 1e-9);
    put_real(out, "share_of_memcpy", bench_quantile(&f->copy_share, 0.5));
    put_real(out, "resident_ttft_ms_p50", bench_quantile(&f->resident, 0.5));
    put_real(out, "load_ms_p50", bench_quantile(&f->load, 0.5));
    put_real(out, "ttft_over_max_p50", bench_quantile(&f->ratio, 0.5));
    put_real(out, "launch_us_p50",
             f->launch_ns_p99 ? (double)f->launch_ns_p50 * 1e-3 : (double)NAN);
    put_real(out, "launch_us_p99",
             f->launch_ns_p99 ? (double)f->launch_ns_p99 * 1e-3 : (double)NAN);
    put_real(out, "fio_gb_per_s", bench_quantile(&f->fio, 0.5) * 1e-9);
    buf_printf(out, ",\"experts\":%llu,\"seed\":%llu,\"loader\":", (unsigned long long)b->experts,
               (unsigned long long)b->seed);
    json_put_str(out, b->loader_text[0] ? b->loader_text : NULL);
    buf_puts(out, "}");
}

/* A figure between two words; nothing if there is none. */
static void put_part(struct buf *out, const char *before, double v, const char *after)
{
    if (!isnan(v))
        buf_printf(out, "%s%.*f%s", before, fabs(v) < 10 ? 3 : 2, v, after);
}

static void put_text(struct bench_switch *b, struct buf *out)
{
    struct bench_figures *f = &b->figures;
    double gb = (double)f->bytes * 1e-9;
    buf_printf(out, "%s from %s, %s, %llu experts, %zu pairs, seed %llu\n", b->which, b->from,
               b->pattern, (unsigned long long)b->experts, BASE_MAX(f->ttft.count, f->load.count),
               (unsigned long long)b->seed);
    put_part(out, "  first token    ", bench_quantile(&f->ttft, 0.5), " ms p50");
    put_part(out, ", ", bench_quantile(&f->ttft, 0.99), " p99");
    put_part(out, "; resident ", bench_quantile(&f->resident, 0.5), " ms");
    put_part(out, "\n  excess         ", bench_quantile(&f->excess, 0.5), " ms p50");
    put_part(out, ", ", bench_quantile(&f->excess, 0.99), " p99");
    put_part(out, "\n  load           ", bench_quantile(&f->load, 0.5), " ms p50");
    put_part(out, "; first token over max(load, resident) ", bench_quantile(&f->ratio, 0.5), "");
    put_part(out, "\n  rate           ", bench_quantile(&f->rate, 0.5) * 1e-9, " GB/s");
    put_part(out, "; device ", bench_quantile(&f->device, 0.5) * 1e-9, " GB/s");
    put_part(out, "; fio ", bench_quantile(&f->fio, 0.5) * 1e-9, " GB/s");
    put_part(out, "; memcpy ", bench_quantile(&f->copy, 0.5) * 1e-9, " GB/s");
    put_part(out, "; share of the device ", bench_quantile(&f->share, 0.5), "");
    put_part(out, "; share of memcpy ", bench_quantile(&f->copy_share, 0.5), "");
    put_part(out, "\n  processor      ", gb > 0 ? (double)f->cpu_ns * 1e-9 / gb : (double)NAN,
             " s per GB of loads");
    if (f->launch_ns_p99)
        buf_printf(out, "\n  decision to first launch %.1f us p50, %.1f p99",
                   (double)f->launch_ns_p50 * 1e-3, (double)f->launch_ns_p99 * 1e-3);
    buf_printf(out, "\n  %llu loads, %llu hits, %llu evictions", (unsigned long long)f->loads,
               (unsigned long long)f->hits, (unsigned long long)f->evictions);
    if (b->loader_text[0])
        buf_printf(out, "\n  loader: %s", b->loader_text);
}

void bench_print(struct bench_switch *b)
{
    struct buf out = {0};
    if (b->json)
        put_json(b, &out);
    else
        put_text(b, &out);
    puts(out.data);
    fflush(stdout);
    buf_done(&out);
}
