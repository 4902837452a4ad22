//! All ndma devices together.

use crate::driver::{Driver, Totals};
use crate::fail::fail;
use crate::idt::DEVICES;
use crate::logic::options::{Options, RATE_MAX};
use crate::memory::Arena;
use crate::ndma;
use crate::pci;

/// The drivers of all ndma devices.
pub struct Drivers {
    list: [Option<&'static mut Driver>; DEVICES],
}

impl Drivers {
    pub const fn none() -> Self {
        Self { list: [const { None }; DEVICES] }
    }

    /// Finds the devices, takes memory for them and starts them.
    pub fn find(options: &Options, hz: u64, arena: &mut Arena) -> Self {
        let mut drivers = Self::none();
        let found = pci::find(ndma::VENDOR, ndma::DEVICE).take(DEVICES).count();
        let functions = pci::find(ndma::VENDOR, ndma::DEVICE);
        for (n, (place, function)) in drivers.list.iter_mut().zip(functions).enumerate() {
            let rate = match options.dma_rate {
                RATE_MAX => RATE_MAX,
                rate => rate / found as u64,
            };
            match Driver::new(n, function, rate, options, hz, arena) {
                Ok(driver) => *place = Some(driver),
                Err(what) => fail(format_args!("ndma{n} at slot={} what={what}", function.slot())),
            }
        }
        drivers
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Driver> {
        self.list.iter_mut().flatten().map(|driver| &mut **driver)
    }

    fn every(&self) -> impl Iterator<Item = &Driver> {
        self.list.iter().flatten().map(|driver| &**driver)
    }

    pub fn len(&self) -> usize {
        self.every().count()
    }

    /// Does what is due; whether there was anything.
    pub fn step(&mut self) -> bool {
        self.each().fold(false, |busy, driver| driver.step() | busy)
    }

    pub fn totals(&self) -> Totals {
        self.every().fold(Totals::default(), |sum, driver| Totals {
            checked: sum.checked + driver.totals().checked,
            interrupts: sum.interrupts + driver.totals().interrupts,
            extra: sum.extra + driver.totals().extra,
        })
    }

    /// Full sweeps over each device's cells.
    pub fn sweeps(&self) -> impl Iterator<Item = u64> {
        self.every().map(|driver| driver.sweeps())
    }

    /// Reads back the registers of devices that have nothing in flight.
    pub fn check_registers(&mut self) {
        self.each().for_each(Driver::check_registers);
    }

    /// Resets every device, whatever it is doing, and goes on.
    pub fn reset(&mut self) {
        self.each().for_each(Driver::reset);
    }

    /// Moves every device's register window, whatever it is doing, and goes on.
    pub fn move_bars(&mut self) {
        self.each().for_each(Driver::move_bar);
    }

    /// Waits for what is in flight and checks every cell once more.
    pub fn finish(&mut self) {
        self.each().for_each(Driver::finish);
    }
}
