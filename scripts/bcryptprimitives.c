/*
 * The one function of Windows' bcryptprimitives.dll that CPython 3.13 needs and Wine before 9 has not:
 * random bytes. scripts/test_windows.sh puts it beside python.exe.
 */
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size)
{
    const SIZE_T most = 1 << 30; /* RtlGenRandom counts in 32 bits */

    while (size > 0) {
        ULONG part = (ULONG)(size < most ? size : most);

        if (!RtlGenRandom(data, part))
            return FALSE;
        data += part;
        size -= part;
    }
    return TRUE;
}
