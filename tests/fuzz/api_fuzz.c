/* libFuzzer target of request bodies: parse, choose, render the prompt, and the answers to it. The
 * first byte picks the endpoint; the rest is the body. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/api_guard.h"
#include "tests/unit/daemon/rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct rig *shared_rig(void)
{
    static struct rig rig;
    static bool open;
    if (!open)
        rig_open_api(&rig, 4);
    open = true;
    return &rig;
}

/* What an engine would have left: two tokens of the prompt's own bytes, and an end. */
static void pretend_to_run(struct api_call *c)
{
    for (size_t i = 0; i < c->requests_count; i++) {
        struct request *r = c->requests[i];
        for (uint32_t k = 0; k < r->choices_count; k++) {
            struct request_event *ev = r->choice[k].events;
            uint32_t n = BASE_MIN(r->max_tokens, (uint32_t)2);
            for (uint32_t t = 0; t < n; t++)
                ev[t] = (struct request_event){.text = "\xc3\xa9\"",
                                               .text_len = 3,
                                               .logprob = -1,
                                               .token = r->prompt.ids[t % r->prompt.count]};
            ev[n] =
                (struct request_event){.token = -1, .text = "", .finish = REQUEST_FINISH_LENGTH};
            atomic_store(&r->choice[k].events_count, n + 1);
        }
        atomic_store(&r->state, REQUEST_DONE);
    }
    atomic_store(&c->given, (unsigned)c->requests_count);
    atomic_store(&c->submitted, true);
}

static void check_json(const struct buf *b)
{
    json_t *v = json_loadb(b->data, b->len, JSON_ALLOW_NUL, NULL);
    if (v == NULL)
        abort();
    json_decref(v);
}

static void check_answers(struct api_call *c)
{
    struct buf out = {0};
    struct err e = {0};
    pretend_to_run(c);
    if (api_call_render(c, &out, &e) != ERR_OK)
        abort();
    check_json(&out);
    buf_clear(&out);
    for (int i = 0; !api_call_render_events(c, &out); i++)
        if (i > 1000)
            abort();
    if (out.len < 14 || strcmp(out.data + out.len - 14, "data: [DONE]\n\n") != 0)
        abort();
    buf_done(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rig *r = shared_rig();
    struct api_call *c = NULL;
    struct err e = {0};
    if (size == 0)
        return 0;
    enum api_kind kind = (data[0] & 1) != 0 ? API_COMPLETION : API_CHAT;
    enum err_code code = api_call_open(&r->server, kind, (const char *)data + 1, size - 1, &c, &e);
    if (code == ERR_OK)
        code = api_call_prepare(c, NULL, &e);
    if (code == ERR_OK) {
        check_answers(c);
    } else {
        struct buf out = {0};
        api_put_error(&out, &e);
        check_json(&out);
        buf_done(&out);
    }
    api_call_close(&c);
    return 0;
}
