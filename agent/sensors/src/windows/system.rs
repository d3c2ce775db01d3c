//! The calls into Windows. Each passes sized buffers of its own and keeps nothing.
#![expect(unsafe_code, reason = "Win32 has no safe interface for these calls")]

use std::os::windows::ffi::OsStrExt;
use std::path::Path;

use skein_policy::readings::Power;
use windows::Networking::Connectivity::{NetworkCostType, NetworkInformation};
use windows::Win32::Foundation::RECT;
use windows::Win32::Graphics::Gdi::{GetMonitorInfoW, MONITOR_DEFAULTTONULL, MONITORINFO, MonitorFromWindow};
use windows::Win32::Storage::FileSystem::GetDiskFreeSpaceExW;
use windows::Win32::System::Power::{GetSystemPowerStatus, SYSTEM_POWER_STATUS};
use windows::Win32::System::RemoteDesktop::ProcessIdToSessionId;
use windows::Win32::System::SystemInformation::GetTickCount;
use windows::Win32::UI::Input::KeyboardAndMouse::{GetLastInputInfo, LASTINPUTINFO};
use windows::Win32::UI::Shell::{
    QUNS_BUSY, QUNS_PRESENTATION_MODE, QUNS_RUNNING_D3D_FULL_SCREEN, SHQueryUserNotificationState,
};
use windows::Win32::UI::WindowsAndMessaging::{
    GetClassNameW, GetForegroundWindow, GetSystemMetrics, GetWindowRect, GetWindowThreadProcessId,
    SM_REMOTESESSION,
};
use windows::core::PCWSTR;

/// Whether this process is in a session that a person can sit at.
pub(super) fn in_a_session() -> Result<(), String> {
    let mut session = 0;
    // SAFETY: `session` outlives the call.
    let known = unsafe { ProcessIdToSessionId(std::process::id(), &raw mut session) }.is_ok();
    if known && session == 0 {
        return Err("a service sees neither input nor windows; run the agent in your session".to_owned());
    }
    Ok(())
}

/// Milliseconds since the last input in this session.
pub(super) fn idle_ms() -> Result<u64, String> {
    let size = u32::try_from(size_of::<LASTINPUTINFO>()).unwrap_or(0);
    let mut last = LASTINPUTINFO { cbSize: size, dwTime: 0 };
    // SAFETY: `last` is of the size that it says and outlives the call.
    if !unsafe { GetLastInputInfo(&raw mut last) }.as_bool() {
        return Err("Windows does not tell this session's last input".to_owned());
    }
    // SAFETY: takes nothing. Both count milliseconds since the start and wrap together after 49 days.
    let now = unsafe { GetTickCount() };
    Ok(u64::from(now.wrapping_sub(last.dwTime)))
}

/// The process whose window fills a screen: by the shell's word, or by the size of the window in front.
pub(super) fn full_screen() -> Result<Option<u32>, String> {
    // SAFETY: takes nothing and returns a number.
    let state = unsafe { SHQueryUserNotificationState() };
    let state =
        state.map_err(|error| format!("Windows does not tell what fills the screen: {}", error.message()))?;
    let told = [QUNS_RUNNING_D3D_FULL_SCREEN, QUNS_BUSY, QUNS_PRESENTATION_MODE].contains(&state);
    let front = front();
    match front {
        Some((process, fills)) if told || fills => Ok(Some(process)),
        Some(_) => Ok(None),
        None => Ok(told.then_some(0)),
    }
}

/// The process of the window in front, and whether that covers its monitor.
fn front() -> Option<(u32, bool)> {
    // SAFETY: takes nothing; the handle may be stale at once, which the calls below answer with an error.
    let window = unsafe { GetForegroundWindow() };
    if window.is_invalid() {
        return None;
    }
    let mut process = 0;
    // SAFETY: `process` outlives the call.
    unsafe { GetWindowThreadProcessId(window, Some(&raw mut process)) };
    let mut class = [0_u16; 64];
    // SAFETY: the buffer's length goes with it.
    let length = unsafe { GetClassNameW(window, &mut class) };
    let class = String::from_utf16_lossy(class.get(..usize::try_from(length).unwrap_or(0)).unwrap_or(&[]));
    // The desktop and the lock screen cover their monitor too.
    if ["Progman", "WorkerW", "Windows.UI.Core.CoreWindow"].contains(&class.as_str()) {
        return Some((process, false));
    }
    let mut place = RECT::default();
    // SAFETY: `place` outlives the call.
    let placed = unsafe { GetWindowRect(window, &raw mut place) }.is_ok();
    // SAFETY: takes a handle and a flag; returns null for a window that is on no monitor.
    let monitor = unsafe { MonitorFromWindow(window, MONITOR_DEFAULTTONULL) };
    let size = u32::try_from(size_of::<MONITORINFO>()).unwrap_or(0);
    let mut about = MONITORINFO { cbSize: size, ..MONITORINFO::default() };
    // SAFETY: `about` is of the size that it says and outlives the call.
    let known = !monitor.is_invalid() && unsafe { GetMonitorInfoW(monitor, &raw mut about) }.as_bool();
    Some((process, placed && known && place == about.rcMonitor))
}

/// Whether this session is shown on another machine.
pub(super) fn remote() -> bool {
    // SAFETY: takes a number and returns one.
    unsafe { GetSystemMetrics(SM_REMOTESESSION) != 0 }
}

/// What feeds the machine.
pub(super) fn power() -> Result<Power, String> {
    let mut status = SYSTEM_POWER_STATUS::default();
    // SAFETY: `status` outlives the call.
    unsafe { GetSystemPowerStatus(&raw mut status) }
        .map_err(|error| format!("Windows does not tell what feeds the machine: {}", error.message()))?;
    // Bit 7 of the flags: no battery. 255: unknown.
    match (status.ACLineStatus, status.BatteryFlag, status.BatteryLifePercent) {
        (1, _, _) => Ok(Power::Mains),
        (_, flags, _) if flags != 255 && flags & 128 != 0 => Ok(Power::Mains),
        (0, _, percent) if percent <= 100 => Ok(Power::Battery { percent }),
        (0, _, _) => Err("the machine runs on a battery that does not tell its charge".to_owned()),
        (_, _, _) => Err("Windows does not know what feeds the machine".to_owned()),
    }
}

/// Whether the way to the internet is paid by the byte.
pub(super) fn metered() -> Result<bool, String> {
    let says =
        |error: windows::core::Error| format!("Windows does not tell the link's cost: {}", error.message());
    let profile = NetworkInformation::GetInternetConnectionProfile().map_err(says)?;
    let cost = profile.GetConnectionCost().and_then(|cost| cost.NetworkCostType()).map_err(says)?;
    if cost == NetworkCostType::Unknown {
        return Err("Windows does not know the link's cost".to_owned());
    }
    Ok(cost != NetworkCostType::Unrestricted)
}

/// Bytes that this user may still write at an existing path.
pub(super) fn disk_free(place: &Path) -> Result<u64, String> {
    let wide: Vec<u16> = place.as_os_str().encode_wide().chain(std::iter::once(0)).collect();
    let mut free = 0;
    // SAFETY: `wide` ends with a zero and outlives the call, as does `free`; the other results are not asked for.
    unsafe { GetDiskFreeSpaceExW(PCWSTR(wide.as_ptr()), Some(&raw mut free), None, None) }
        .map_err(|error| format!("{}: {}", place.display(), error.message()))?;
    Ok(free)
}
