/* Emitted text to a function, now and for this process only: nothing is cached, as what is compared
 * is code, not how it comes to be there (rdu/emit/native.c does that for programs that serve). */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/bench/ablation.h"
#include "rdu/kernels/kernels.h"

#define COMPILE_MS_MAX 60000

enum err_code bench_compile(const struct buf *text, struct emit_object *ret, struct err *e)
{
    struct emit_cc cc;
    struct rdu_kernels k;
    enum err_code code = rdu_kernels_init(&k, NULL, e);
    if (code != ERR_OK)
        return code;
    /* As wide as the code by hand is compiled. */
    emit_cc_init(&cc, "cc", strncmp(k.isa, "avx", 3) == 0 ? "avx2" : k.isa, COMPILE_MS_MAX);
    const char *temp = getenv("TMPDIR");
    struct buf object = {0};
    if (cc.path == NULL)
        code = err_set(e, ERR_UNSUPPORTED, "no C compiler (cc) in PATH");
    if (code == ERR_OK)
        code = emit_cc_run(&cc, temp && *temp ? temp : "/tmp", text, NULL, &object, e);
    if (code == ERR_OK)
        code = emit_load_bytes(&object, ret, e);
    buf_done(&object);
    emit_cc_done(&cc);
    return code;
}
