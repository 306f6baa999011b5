/* switchyard bench serve: what the way through HTTP costs. The daemon is opened in this process on
 * a free port; the same requests go to its engine directly and over sockets, alternating, so that
 * both meet the same machine. One thread plays all clients: reads of a stream are time-stamped as
 * they come. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/bench_switch.h"
#include "daemon/commands.h"
#include "daemon/http.h"
#include "daemon/json_out.h"

#define STREAMS_MAX 256
#define SETTLE_MS 2500

/* One answer as its client sees it. */
struct watch {
    uint64_t sent_ns, first_ns, last_ns;
    uint32_t tokens;
    double *gaps; /* [tokens wanted] ms between tokens */
    /* over HTTP */
    int fd; /* -1 = not open */
    bool done;
    char tail[8];            /* last bytes of the read before: a mark may be cut in two */
    struct request *request; /* without */
    atomic_bool over;
};

struct bench {
    const char *model, *store, *numerics;
    uint64_t threads, sockets, streams, prompt, tokens, reps, beside;
    bool json;
    struct conf conf;
    struct server server;
    struct expert *expert;
    uint16_t port;
    struct watch *watch; /* [streams + 1]: the last is the one beside */
    struct rng rng;
    uint64_t beside_done;
};

/* ---- what both ways share ---- */

static void note_tokens(struct watch *w, uint32_t count, uint64_t now)
{
    for (; count > 0; count--) {
        if (w->tokens == 0)
            w->first_ns = now;
        else if (w->gaps)
            w->gaps[w->tokens - 1] = (double)(now - w->last_ns) * 1e-6;
        w->last_ns = now;
        w->tokens++;
    }
}

static void make_prompt(struct bench *b, uint64_t count, int32_t *ids)
{
    uint64_t vocab = (uint64_t)tokenizer_vocab(expert_tokenizer(b->expert));
    for (uint64_t i = 0; i < count; i++)
        ids[i] = (int32_t)rng_below(&b->rng, vocab);
}

static void start_watches(struct bench *b)
{
    for (uint64_t i = 0; i <= b->streams; i++) {
        double *gaps = b->watch[i].gaps;
        b->watch[i] = (struct watch){.gaps = gaps, .fd = -1};
    }
}

/* ---- the engine alone ---- */

static void on_notify(struct request *r)
{
    struct watch *w = r->owner;
    uint32_t events = request_events(&r->choice[0]);
    bool done = atomic_load(&r->state) == REQUEST_DONE;
    /* The last event ends the answer; it has no token. */
    uint32_t tokens = events > 0 && r->choice[0].events[events - 1].token < 0 ? events - 1 : events;
    if (tokens > w->tokens)
        note_tokens(w, tokens - w->tokens, clock_ns());
    if (done)
        atomic_store(&w->over, true);
}

static enum err_code submit(struct bench *b, struct watch *w, struct err *e)
{
    uint32_t retry_s;
    struct request *r = w->request = request_open();
    r->expert = b->expert;
    r->prompt.ids = mem_array(b->prompt, sizeof(int32_t));
    r->prompt.count = r->prompt.cap = b->prompt;
    make_prompt(b, b->prompt, r->prompt.ids);
    r->sampling.temperature = 0;
    r->sampling.ignore_eos = true;
    r->cache_prompt = false;
    r->max_tokens = (uint32_t)b->tokens;
    r->notify = on_notify;
    r->owner = w;
    request_prepare_output(r);
    w->sent_ns = clock_ns();
    return engine_submit(b->server.engine, r, &retry_s, e);
}

static enum err_code run_engine(struct bench *b, struct err *e)
{
    enum err_code code = ERR_OK;
    uint64_t sent = 0;
    start_watches(b);
    for (; code == ERR_OK && sent < b->streams; sent++)
        code = submit(b, &b->watch[sent], e);
    for (uint64_t i = 0; code == ERR_OK && i < sent; i++)
        while (!atomic_load(&b->watch[i].over))
            poll(NULL, 0, 1);
    for (uint64_t i = 0; i < sent; i++)
        if (b->watch[i].request)
            request_unref(&b->watch[i].request);
    return code;
}

/* ---- over HTTP ---- */

static enum err_code send_all(int fd, const struct buf *out, struct err *e)
{
    for (size_t at = 0; at < out->len;) {
        ssize_t n = send(fd, out->data + at, out->len - at, MSG_NOSIGNAL);
        if (n < 0)
            return err_set_errno(e, ERR_IO, "cannot send a request");
        at += (size_t)n;
    }
    return ERR_OK;
}

static enum err_code ask(struct bench *b, struct watch *w, uint64_t prompt, uint64_t tokens,
                         struct err *e)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(b->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct buf body = {0}, out = {0};
    int32_t *ids = mem_array(prompt, sizeof(*ids));
    int one = 1;
    make_prompt(b, prompt, ids);
    buf_puts(&body, "{\"model\":");
    json_put_str(&body, expert_info(b->expert)->name);
    for (uint64_t i = 0; i < prompt; i++)
        buf_printf(&body, "%s%d", i ? "," : ",\"prompt\":[", ids[i]);
    buf_printf(&body,
               "],\"max_tokens\":%llu,\"temperature\":0,\"ignore_eos\":true,\"cache_prompt\":false,"
               "\"stream\":true}",
               (unsigned long long)tokens);
    buf_printf(&out,
               "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
               "Content-Length: %zu\r\nConnection: close\r\n\r\n",
               body.len);
    buf_append(&out, body.data, body.len);
    enum err_code code = ERR_OK;
    w->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (w->fd < 0 || connect(w->fd, (struct sockaddr *)&to, sizeof(to)) != 0)
        code = err_set_errno(e, ERR_IO, "cannot connect to our own port %u", b->port);
    else
        setsockopt(w->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    w->sent_ns = clock_ns();
    if (code == ERR_OK)
        code = send_all(w->fd, &out, e);
    free(ids);
    buf_done(&body);
    buf_done(&out);
    return code;
}

/* How many times `mark` ends within data [tail_len, len). */
static uint32_t count_marks(const char *data, size_t tail_len, size_t len, const char *mark)
{
    size_t n = strlen(mark);
    uint32_t count = 0;
    for (const char *at = data; (at = memmem(at, len - (size_t)(at - data), mark, n)) != NULL;
         at += n)
        count += (size_t)(at - data) + n > tail_len;
    return count;
}

/* False = the stream has ended. */
static bool take_bytes(struct watch *w, struct err *e)
{
    char data[16384 + sizeof(w->tail)];
    size_t kept = strnlen(w->tail, sizeof(w->tail));
    memcpy(data, w->tail, kept);
    ssize_t n = recv(w->fd, data + kept, sizeof(data) - kept, 0);
    if (n <= 0) {
        if (!w->done)
            err_set(e, ERR_IO, "a stream ended early: %.200s", data);
        close(w->fd);
        w->fd = -1;
        return false;
    }
    size_t len = kept + (size_t)n;
    /* One event per token carries text; the last one, with the reason, carries none. */
    uint32_t tokens = count_marks(data, kept, len, "\"text\":\"");
    uint32_t ends = count_marks(data, kept, len, "ason\":\"");
    if (ends > 0)
        w->done = true;
    note_tokens(w, tokens - BASE_MIN(ends, tokens), clock_ns());
    size_t keep = BASE_MIN(len, sizeof(w->tail) - 1);
    memcpy(w->tail, data + len - keep, keep);
    w->tail[keep] = 0;
    return true;
}

/* Requests with long prompts, one after another, from when all streams run until the first is done.
 */
static enum err_code keep_beside(struct bench *b, bool streaming, struct err *e)
{
    struct watch *w = &b->watch[b->streams];
    if (b->beside == 0 || !streaming || w->fd >= 0)
        return ERR_OK;
    b->beside_done += w->tokens > 0;
    *w = (struct watch){.fd = -1};
    return ask(b, w, b->beside, 1, e);
}

static enum err_code run_http(struct bench *b, struct err *e)
{
    enum err_code code = ERR_OK;
    uint64_t open = 0;
    e->code = ERR_OK;
    start_watches(b);
    for (; code == ERR_OK && open < b->streams; open++)
        code = ask(b, &b->watch[open], b->prompt, b->tokens, e);
    for (bool streaming = false; code == ERR_OK && open > 0;) {
        struct pollfd fds[STREAMS_MAX + 1];
        bool all_begun = true;
        for (uint64_t i = 0; i <= b->streams; i++)
            fds[i] = (struct pollfd){.fd = b->watch[i].fd, .events = POLLIN};
        poll(fds, (nfds_t)b->streams + 1, 1000);
        for (uint64_t i = 0; i <= b->streams; i++) {
            if ((fds[i].revents & (POLLIN | POLLHUP | POLLERR)) && !take_bytes(&b->watch[i], e))
                open -= i < b->streams;
            all_begun &= i == b->streams || b->watch[i].tokens > 0;
        }
        streaming = all_begun && open == b->streams;
        code = e->code == ERR_OK ? keep_beside(b, streaming, e) : e->code;
    }
    for (uint64_t i = 0; i <= b->streams; i++)
        if (b->watch[i].fd >= 0)
            close(b->watch[i].fd);
    return code;
}

/* ---- figures ---- */

struct figures {
    struct bench_list rate, ttft, gap;
};

static void take_figures(const struct bench *b, struct figures *f)
{
    uint64_t first = UINT64_MAX, last = 0, tokens = 0;
    for (uint64_t i = 0; i < b->streams; i++) {
        const struct watch *w = &b->watch[i];
        first = BASE_MIN(first, w->sent_ns);
        last = BASE_MAX(last, w->last_ns);
        tokens += w->tokens;
        bench_add(&f->ttft, (double)(w->first_ns - w->sent_ns) * 1e-6);
        for (uint32_t k = 1; k < w->tokens; k++)
            bench_add(&f->gap, w->gaps[k - 1]);
    }
    bench_add(&f->rate, (double)tokens * 1e9 / (double)(last - first));
}

static void figures_done(struct figures *f)
{
    free(f->rate.v);
    free(f->ttft.v);
    free(f->gap.v);
}

static void print_row(struct bench *b, struct figures *http, struct figures *bare)
{
    double rate = bench_quantile(&http->rate, 0.5), limit = bench_quantile(&bare->rate, 0.5);
    double p50 = bench_quantile(&http->gap, 0.5), p99 = bench_quantile(&http->gap, 0.99);
    double ttft = bench_quantile(&http->ttft, 0.5), ttft_bare = bench_quantile(&bare->ttft, 0.5);
    const struct expert_info *info = expert_info(b->expert);
    struct buf out = {0};
    if (!b->json) {
        printf("serve    %-8s %u threads  n %-4llu %8.1f tokens/s, %.3f of the engine's %.1f  p50 "
               "%.2f ms  p99 %.2f ms  "
               "first token %.2f ms, engine %.2f ms",
               info->types, rdu_node_threads(b->server.node), (unsigned long long)b->streams, rate,
               rate / limit, limit, p50, p99, ttft, ttft_bare);
        if (b->beside)
            printf("  beside %llu prompts of %llu", (unsigned long long)b->beside_done,
                   (unsigned long long)b->beside);
        puts("");
        return;
    }
    buf_puts(&out, "{\"bench\":\"serve\",\"type\":");
    json_put_str(&out, info->types);
    buf_printf(&out, ",\"threads\":%u,\"isa\":", rdu_node_threads(b->server.node));
    json_put_str(&out, rdu_node_isa(b->server.node));
    buf_printf(
        &out,
        ",\"n\":%llu,\"tokens_per_s\":%.2f,\"ms_p50\":%.4f,\"ms_p99\":%.4f,\"share_of_limit\":%.4f,"
        "\"limit\":\"engine %.2f tokens/s\",\"ttft_ms_p50\":%.4f,\"engine_ttft_ms_p50\":%.4f,"
        "\"engine_ms_p50\":%.4f,\"engine_ms_p99\":%.4f,\"beside_tokens\":%llu,\"beside_prompts\":%"
        "llu}",
        (unsigned long long)b->streams, rate, p50, p99, rate / limit, limit, ttft, ttft_bare,
        bench_quantile(&bare->gap, 0.5), bench_quantile(&bare->gap, 0.99),
        (unsigned long long)b->beside, (unsigned long long)b->beside_done);
    puts(out.data);
    fflush(stdout);
    buf_done(&out);
}

static enum err_code measure(struct bench *b, uint64_t streams, struct err *e)
{
    struct figures http = {0}, bare = {0};
    enum err_code code = ERR_OK;
    b->streams = streams;
    b->beside_done = 0;
    b->watch = mem_array(streams + 1, sizeof(*b->watch));
    for (uint64_t i = 0; i < streams; i++)
        b->watch[i].gaps = mem_array(b->tokens + 1, sizeof(double));
    for (uint64_t r = 0; code == ERR_OK && r <= b->reps; r++) { /* the first warms up */
        code = run_engine(b, e);
        if (code == ERR_OK && r > 0)
            take_figures(b, &bare);
        if (code == ERR_OK)
            code = run_http(b, e);
        if (code == ERR_OK && r > 0)
            take_figures(b, &http);
    }
    if (code == ERR_OK)
        print_row(b, &http, &bare);
    for (uint64_t i = 0; i < streams; i++)
        free(b->watch[i].gaps);
    free(b->watch);
    figures_done(&http);
    figures_done(&bare);
    return code;
}

/* ---- the command ---- */

static enum err_code set_options(struct bench *b, struct err *e)
{
    struct conf *c = &b->conf;
    enum err_code code = conf_load_environment(c, e);
    if (code == ERR_OK && b->store)
        code = conf_set(c, "store.path", b->store, e);
    if (code == ERR_OK && b->numerics)
        code = conf_set(c, "rdu.numerics", b->numerics, e);
    if (code == ERR_OK)
        code = conf_set(c, "server.host", "127.0.0.1", e);
    if (code == ERR_OK)
        code = conf_set(c, "log.requests", "false", e);
    c->server_port = 0;
    if (b->threads)
        c->rdu_threads = (uint32_t)b->threads;
    if (b->sockets)
        c->rdu_sockets = (uint32_t)b->sockets;
    c->sched_max_sequences = BASE_MAX(c->sched_max_sequences, (uint32_t)b->streams + 1);
    c->sched_draft_tokens = 0; /* random prompts have nothing to look up */
    return code;
}

static enum err_code run(struct bench *b, struct err *e)
{
    static const uint64_t counts[] = {1, 4, 16};
    const char *colon = strrchr(http_address(b->server.http), ':');
    enum err_code code = ERR_OK;
    b->port = (uint16_t)atoi(colon + 1);
    /* The pool is still being faulted in, on a processor that the steps want. */
    while (!engine_ready(b->server.engine))
        poll(NULL, 0, 10);
    poll(NULL, 0, SETTLE_MS);
    rng_init(&b->rng, 1);
    if (b->streams)
        return measure(b, b->streams, e);
    for (size_t i = 0; code == ERR_OK && i < BASE_COUNT(counts); i++)
        code = measure(b, counts[i], e);
    return code;
}

int cmd_bench_serve(int argc, char **argv)
{
    struct bench b = {.prompt = 32, .tokens = 128, .reps = 5};
    struct err e = {0};
    const struct cli_option options[] = {
        {"model", 'm', CLI_TEXT, &b.model, "NAME", "an expert of the store"},
        {"store", 0, CLI_TEXT, &b.store, "DIR",
         "the store (default: store.path of the configuration)"},
        {"threads", 't', CLI_UINT, &b.threads, "N", "host threads (default: all usable)", 1, 16},
        {"sockets", 0, CLI_UINT, &b.sockets, "N", "emulated sockets (default 8)", 1, 16},
        {"streams", 's', CLI_UINT, &b.streams, "N", "at once (default: 1, then 4, then 16)", 1,
         STREAMS_MAX},
        {"prompt", 'p', CLI_UINT, &b.prompt, "N", "prompt tokens (default 32)", 1, 1 << 20},
        {"tokens", 'n', CLI_UINT, &b.tokens, "N", "tokens of each answer (default 128)", 2,
         1 << 20},
        {"beside", 0, CLI_UINT, &b.beside, "N",
         "prompts of N tokens that keep arriving while they stream", 1, 1 << 20},
        {"reps", 'r', CLI_UINT, &b.reps, "N", "pairs; medians are reported (default 5)", 1, 1000},
        {"numerics", 0, CLI_TEXT, &b.numerics, "int8|f32", "default int8"},
        {"json", 0, CLI_FLAG, &b.json, NULL, "one JSON object per line"},
        {0}};
    const struct cli_spec spec = {
        "bench serve",
        "--model NAME",
        "Opens the daemon on a free port and sends the same requests to its engine directly and "
        "over HTTP, alternating:\n"
        "tokens per second over the engine's, time between tokens, time to the first token of "
        "both.",
        "  switchyard bench serve --model smollm2 --threads 2\n"
        "  switchyard bench serve --model smollm2 --streams 16 --beside 2000 --json\n",
        options,
        0,
        0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit != CLI_RUN)
        return exit;
    if (b.model == NULL)
        return cli_wrong("bench serve", "--model names an expert of the store");
    conf_init(&b.conf);
    enum err_code code = set_options(&b, &e);
    if (code == ERR_OK)
        code = server_open(&b.conf, "", &b.server, &e);
    if (code == ERR_OK) {
        b.expert = server_find_expert(&b.server, b.model);
        if (b.expert == NULL)
            code = err_set(&e, ERR_MODEL,
                           "there is no expert '%s' in the store %s; see 'switchyard experts list'",
                           b.model, b.conf.store_path);
        else if (expert_ok(b.expert, &e))
            code = run(&b, &e);
        else
            code = e.code;
        server_close(&b.server);
    }
    conf_done(&b.conf);
    return code == ERR_OK ? CLI_DONE : cli_refuse("bench serve", &e);
}
